# bash completion for conward, which is installed as conmon too.
#
# Install as /usr/share/bash-completion/completions/conward, with a symlink conmon beside it.

_conward() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
    local before=
    ((COMP_CWORD >= 2)) && before=${COMP_WORDS[COMP_CWORD - 2]}
    COMPREPLY=()

    # Readline cuts words at '=' and ':', so that '--log-path=k8s-file:/var' arrives in five pieces.
    if [[ $cur == '=' || $cur == ':' ]]; then
        before=$prev prev=$cur cur=
    fi
    if [[ $prev == '=' ]]; then
        prev=$before
    elif [[ $prev == ':' ]]; then
        case $before in
            k8s-file | json-file) mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        esac
        return
    fi

    case $prev in
        --log-level)
            mapfile -t COMPREPLY < <(compgen -W 'error warning info debug trace' -- "$cur")
            return
            ;;
        -l | --log-path)
            mapfile -t COMPREPLY < <(compgen -W 'k8s-file: json-file: journald passthrough none' -- "$cur"
                compgen -f -- "$cur")
            [[ ${COMPREPLY[0]} == *: ]] && compopt -o nospace 2>/dev/null
            return
            ;;
        -b | --bundle | -0 | --persist-dir | --exit-dir | --socket-dir-path | --log-allowlist-dir)
            mapfile -t COMPREPLY < <(compgen -d -- "$cur")
            return
            ;;
        -r | --runtime | --exit-command)
            mapfile -t COMPREPLY < <(compgen -c -- "$cur"
                compgen -f -- "$cur")
            return
            ;;
        -P | --conmon-pidfile | -p | --container-pidfile | --pidfile | --exec-process-spec | --restore | \
            --rpc-socket | --sdnotify-socket | --seccomp-notify-socket)
            mapfile -t COMPREPLY < <(compgen -f -- "$cur")
            return
            ;;
        # These take a word that nobody can guess.
        -c | --cid | -u | --cuuid | -n | --name | -T | --timeout | --attach-stall-timeout | --check-state | \
            --exit-command-arg | --exit-delay | --history-held-max | --log-file-mode | --log-global-size-max | --log-label | \
            --log-line-max | --log-max-files | --log-size-max | --log-tag | --restore-arg | --resume | \
            --runtime-arg | --runtime-opt | --seccomp-notify-plugins)
            return
            ;;
    esac

    [[ $cur == -* ]] || return
    mapfile -t COMPREPLY < <(compgen -W '
        --api-version --attach-stall-timeout --bundle --check-state --cid --conmon-pidfile --container-pidfile --cuuid --exec
        --exec-attach --exec-process-spec --exit-command --exit-command-arg --exit-delay --exit-dir --full-attach
        --help --history-held-max --leave-stdin-open --log-allowlist-dir --log-file-mode --log-global-size-max
        --log-label --log-level --log-line-max --log-max-files --log-path --log-rotate --log-size-max --log-tag
        --log-utc --name --no-container-partial-message --no-new-keyring --no-pivot --no-sync-log --persist-dir
        --pidfile --replace-listen-pid --restore --restore-arg --resume --rpc-socket --runtime --runtime-arg
        --runtime-opt
        --sdnotify-socket --seccomp-notify-plugins --seccomp-notify-socket --socket-dir-path --stdin --sync
        --syslog --systemd-cgroup --terminal --timeout --version
        -0 -P -T -b -c -e -h -i -l -n -p -r -s -t -u' -- "$cur")
}

complete -F _conward conward conmon
