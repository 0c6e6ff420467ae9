# bash completion for conwardctl.
#
# Install as /usr/share/bash-completion/completions/conwardctl.

# IDs and names of the containers that have a monitor with a service.
_conwardctl_containers() {
    local id name phase
    while read -r id name phase _; do
        [[ $phase == conmon || $phase == PHASE ]] && continue
        printf '%s\n' "$id"
        [[ $name == - ]] || printf '%s\n' "$name"
    done < <(conwardctl ps 2>/dev/null)
}

_conwardctl() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} before=
    local command= words=0 at
    COMPREPLY=()

    # Readline cuts words at '='.
    ((COMP_CWORD >= 2)) && before=${COMP_WORDS[COMP_CWORD - 2]}
    [[ $cur == '=' ]] && before=$prev prev='=' cur=
    [[ $prev == '=' ]] && prev=$before

    # The command is the first word that is neither an option nor the value of one; the container is the next.
    for ((at = 1; at < COMP_CWORD; at++)); do
        case ${COMP_WORDS[at]} in
            --*) [[ ${COMP_WORDS[at + 1]} == '=' ]] && ((at += 2)) && continue
                _conwardctl_takes_value "${COMP_WORDS[at]}" && ((at++)) ;;
            -?) _conwardctl_takes_value "${COMP_WORDS[at]}" && ((at++)) ;;
            -*) ;;
            *) if [[ -z $command ]]; then command=${COMP_WORDS[at]}; else ((words++)); fi ;;
        esac
    done

    case $prev in
        --history)
            mapfile -t COMPREPLY < <(compgen -W 'all none' -- "$cur")
            return
            ;;
        --stream)
            mapfile -t COMPREPLY < <(compgen -W 'stdout stderr both' -- "$cur")
            return
            ;;
        --action)
            mapfile -t COMPREPLY < <(compgen -W 'back-pressure drop' -- "$cur")
            return
            ;;
        --sort)
            mapfile -t COMPREPLY < <(compgen -W 'id name rate lost memory size' -- "$cur")
            return
            ;;
        -s | --signal)
            mapfile -t COMPREPLY < <(compgen -W 'HUP INT QUIT KILL TERM USR1 USR2 STOP CONT WINCH' -- "$cur")
            return
            ;;
        --process | --socket)
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return
            ;;
    esac
    # The others take a word that nobody can guess.
    _conwardctl_takes_value "$prev" && return

    if [[ -z $command && $cur != -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W '
            attach close-stdin exec exec-result inspect log-policy logs ps reopen-log resize signal top upgrade
            version wait' -- "$cur")
        return
    fi
    if [[ $cur == -* ]]; then
        local options='--help --json --socket -h'
        case $command in
            '') options+=' --version' ;;
            attach) options+=' --detach-keys --history --leave-stdin-open --no-stdin' ;;
            exec)
                options+=' --cap --detach --detach-keys --env --group --interactive --no-new-privileges --output-max
                    --process --timeout --tty --user --workdir -d -e -i -t -u -w'
                ;;
            log-policy) options+=' --action --burst --stream' ;;
            logs) options+=' --bytes --follow --since-offset --stderr --stdout --tail -f -n' ;;
            ps) options+=' --all --no-trunc -a' ;;
            signal) options+=' --signal -s' ;;
            top) options+=' --interval --once --sort' ;;
            upgrade) options+=' --all --check' ;;
        esac
        mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
        return
    fi
    case $command:$words in
        ps:* | top:*) ;;
        upgrade:1) mapfile -t COMPREPLY < <(compgen -c -- "$cur"
            compgen -f -- "$cur") ;;
        *:0) mapfile -t COMPREPLY < <(compgen -W "$(_conwardctl_containers)" -- "$cur") ;;
    esac
}

_conwardctl_takes_value() {
    case $1 in
        --action | --burst | --bytes | --cap | --detach-keys | --env | --group | --history | --interval | \
            --output-max | --process | --signal | --since-offset | --socket | --sort | --stream | --tail | \
            --timeout | --user | --workdir | -e | -n | -s | -u | -w)
            return 0
            ;;
    esac
    return 1
}

complete -F _conwardctl conwardctl
