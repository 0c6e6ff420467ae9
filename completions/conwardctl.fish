# fish completion for conwardctl.
#
# Install as conwardctl.fish in /usr/share/fish/vendor_completions.d.

function __conwardctl_containers
    conwardctl ps 2>/dev/null | while read -l id name phase rest
        contains -- $phase conmon PHASE; and continue
        echo $id
        test $name != -; and echo $name
    end
end

complete -c conwardctl -f
complete -c conwardctl -s h -l help -d 'Show the help'
complete -c conwardctl -l json -d 'Print JSON'
complete -c conwardctl -l socket -r -F -d 'The monitor behind this socket'
complete -c conwardctl -n __fish_use_subcommand -l version -d 'Show the version'

complete -c conwardctl -n __fish_use_subcommand -a attach -d 'Connect the terminal to a container'
complete -c conwardctl -n __fish_use_subcommand -a close-stdin -d 'Let a container read an end of file'
complete -c conwardctl -n __fish_use_subcommand -a exec -d 'Run one more process in a container'
complete -c conwardctl -n __fish_use_subcommand -a exec-result -d 'Show how such a process ended'
complete -c conwardctl -n __fish_use_subcommand -a inspect -d 'Show everything that a monitor knows'
complete -c conwardctl -n __fish_use_subcommand -a log-policy -d 'Limit how fast a container is logged'
complete -c conwardctl -n __fish_use_subcommand -a logs -d 'Show what a container has said'
complete -c conwardctl -n __fish_use_subcommand -a ps -d 'List monitors and their containers'
complete -c conwardctl -n __fish_use_subcommand -a reopen-log -d 'Go on in a new log file'
complete -c conwardctl -n __fish_use_subcommand -a resize -d "Set the size of a container's terminal"
complete -c conwardctl -n __fish_use_subcommand -a signal -d 'Send a signal to a container'
complete -c conwardctl -n __fish_use_subcommand -a top -d 'Show all of them, again and again'
complete -c conwardctl -n __fish_use_subcommand -a upgrade -d 'Replace running monitors'
complete -c conwardctl -n __fish_use_subcommand -a version -d 'Show the version of a monitor or of this program'
complete -c conwardctl -n __fish_use_subcommand -a wait -d 'Wait for the end of a container'

set -l with_container attach close-stdin exec exec-result inspect log-policy logs \
    reopen-log resize signal upgrade version wait
complete -c conwardctl -n "__fish_seen_subcommand_from $with_container" -a '(__conwardctl_containers)'

complete -c conwardctl -n '__fish_seen_subcommand_from attach' -l detach-keys -x -d 'Keys that leave it'
complete -c conwardctl -n '__fish_seen_subcommand_from attach' -l history -x -a 'all none' -d 'What was said before'
complete -c conwardctl -n '__fish_seen_subcommand_from attach' -l no-stdin -d 'Only listen'
complete -c conwardctl -n '__fish_seen_subcommand_from attach' -l leave-stdin-open \
    -d 'Stdin stays open at the end of ours'

complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s i -l interactive -d 'Connect standard input'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s t -l tty -d 'With a terminal'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s d -l detach -d 'Print its number and leave it'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s e -l env -x -d 'One more variable'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s w -l workdir -x -d 'Working directory'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -s u -l user -x -d 'User, by number'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l group -x -d 'One more group'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l cap -x -d 'One more capability'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l no-new-privileges -d 'It cannot gain privileges'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l timeout -x -d 'Kill it after so long'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l output-max -x -d 'Capture no more than this'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l process -r -F -d 'An OCI process'
complete -c conwardctl -n '__fish_seen_subcommand_from exec' -l detach-keys -x -d 'Keys that leave it'

complete -c conwardctl -n '__fish_seen_subcommand_from log-policy' -l stream -x -a 'stdout stderr both' \
    -d 'Which stream'
complete -c conwardctl -n '__fish_seen_subcommand_from log-policy' -l burst -x -d 'What may come at once'
complete -c conwardctl -n '__fish_seen_subcommand_from log-policy' -l action -x -a 'back-pressure drop' \
    -d 'What happens above the limit'

complete -c conwardctl -n '__fish_seen_subcommand_from logs' -s f -l follow -d 'Go on with what it says'
complete -c conwardctl -n '__fish_seen_subcommand_from logs' -s n -l tail -x -d 'The last lines only'
complete -c conwardctl -n '__fish_seen_subcommand_from logs' -l bytes -x -d 'The last bytes only'
complete -c conwardctl -n '__fish_seen_subcommand_from logs' -l since-offset -x -d 'From these offsets on'
complete -c conwardctl -n '__fish_seen_subcommand_from logs' -l stdout -d 'Only this stream'
complete -c conwardctl -n '__fish_seen_subcommand_from logs' -l stderr -d 'Only this stream'

complete -c conwardctl -n '__fish_seen_subcommand_from ps' -s a -l all -d 'Also the monitors of engines execs'
complete -c conwardctl -n '__fish_seen_subcommand_from ps' -l no-trunc -d 'Whole IDs'

complete -c conwardctl -n '__fish_seen_subcommand_from signal' -s s -l signal -x -a 'HUP INT QUIT KILL TERM USR1 USR2' \
    -d 'By name or number'

complete -c conwardctl -n '__fish_seen_subcommand_from top' -l once -d 'Print the table one time'
complete -c conwardctl -n '__fish_seen_subcommand_from top' -l sort -x -a 'id name rate lost memory size' \
    -d 'Sort by this'
complete -c conwardctl -n '__fish_seen_subcommand_from top' -l interval -x -d 'Between two looks'

complete -c conwardctl -n '__fish_seen_subcommand_from upgrade' -l all -d 'All monitors of this host'
complete -c conwardctl -n '__fish_seen_subcommand_from upgrade' -l check -d 'Only ask whether it could be'

# A program instead of a container, with all of them.
complete -c conwardctl -n "__fish_seen_subcommand_from upgrade" -F
