# fish completion for conward, which is installed as conmon too.
#
# Install as conward.fish and conmon.fish in /usr/share/fish/vendor_completions.d.

for name in conward conmon
    complete -c $name -f
    complete -c $name -s h -l help -d 'Show the options'
    complete -c $name -l version -d 'Show the version'

    complete -c $name -s c -l cid -x -d 'Container ID'
    complete -c $name -s u -l cuuid -x -d 'Name of the attach symlink'
    complete -c $name -s n -l name -x -d 'Container name, for journald'
    complete -c $name -s b -l bundle -x -a '(__fish_complete_directories)' -d 'Bundle directory'
    complete -c $name -s r -l runtime -r -F -d 'OCI runtime'
    complete -c $name -l runtime-arg -x -d 'Word before the sub-command of the runtime'
    complete -c $name -l runtime-opt -x -d 'Word after the options of the sub-command'
    complete -c $name -l restore-arg -x -d 'Old name of --runtime-opt'
    complete -c $name -l no-pivot -d 'Pass --no-pivot to the runtime'
    complete -c $name -l no-new-keyring -d 'Pass --no-new-keyring to the runtime'
    complete -c $name -s s -l systemd-cgroup -d 'Pass --systemd-cgroup to the runtime'
    complete -c $name -l restore -r -F -d 'Restore from a checkpoint image'
    complete -c $name -s e -l exec -d 'Run one more process in a running container'
    complete -c $name -l exec-process-spec -r -F -d 'OCI process file'
    complete -c $name -l exec-attach -d 'Wait until the caller has attached'
    complete -c $name -l api-version -d 'Reports in the form of API version 1'

    complete -c $name -s t -l terminal -d 'The container has a terminal'
    complete -c $name -s i -l stdin -d 'The container has a stdin'
    complete -c $name -l leave-stdin-open -d 'Keep stdin open when a client leaves'
    complete -c $name -l full-attach -d 'Attach socket in the bundle'
    complete -c $name -l socket-dir-path -x -a '(__fish_complete_directories)' -d 'Directory of the attach symlinks'

    complete -c $name -s l -l log-path -r -F -a 'k8s-file: json-file: journald passthrough none' -d 'Where output goes'
    complete -c $name -l log-size-max -x -d 'Start the log file anew at this size'
    complete -c $name -l log-global-size-max -x -d 'Log no more than this in all'
    complete -c $name -l log-rotate -d 'Keep backups of full log files'
    complete -c $name -l log-max-files -x -d 'Number of backups'
    complete -c $name -l log-allowlist-dir -x -a '(__fish_complete_directories)' -d 'Log files must lie below'
    complete -c $name -l log-tag -x -d 'journald: CONTAINER_TAG'
    complete -c $name -l log-label -x -d 'journald: LABEL=VALUE, one more field'
    complete -c $name -l no-container-partial-message -d 'journald: do not mark partial lines'
    complete -c $name -l no-sync-log -d 'Do not fsync the log at the end'
    complete -c $name -l log-level -x -a 'error warning info debug trace' -d 'Own messages'
    complete -c $name -l syslog -d 'Own messages to syslog as well'

    complete -c $name -s p -l container-pidfile -r -F -d 'Where the runtime writes the pid'
    complete -c $name -l pidfile -r -F -d 'Old name of --container-pidfile'
    complete -c $name -s P -l conmon-pidfile -r -F -d 'Where to write the own pid'
    complete -c $name -l sync -d 'Stay in the started process'
    complete -c $name -s T -l timeout -x -d 'Kill the container after so many seconds'
    complete -c $name -l exit-dir -x -a '(__fish_complete_directories)' -d 'Directory for the exit file'
    complete -c $name -s 0 -l persist-dir -x -a '(__fish_complete_directories)' -d 'Directory for the files exit and oom'
    complete -c $name -l exit-command -r -F -d 'Program to run at the end'
    complete -c $name -l exit-command-arg -x -d 'Its argument'
    complete -c $name -l exit-delay -x -d 'Seconds to wait before running it'
    complete -c $name -l sdnotify-socket -r -F -d 'Relay sd-notify messages to this socket'
    complete -c $name -l replace-listen-pid -d 'Give the pid of the runtime in LISTEN_PID'

    complete -c $name -l log-line-max -x -d 'Content bytes of one record'
    complete -c $name -l log-utc -d 'Time stamps in UTC'
    complete -c $name -l log-file-mode -x -d 'Octal permissions of a new log file'
    complete -c $name -l attach-stall-timeout -x -d 'Disconnect a client that reads nothing for so many seconds'
    complete -c $name -l rpc-socket -r -d 'Where the service listens, or none'
    complete -c $name -l history-held-max -x -d 'Bytes of rotated logs kept for clients that are behind'

    complete -c $name -l check-state -x -d 'Say whether the state in this descriptor could be resumed'
    complete -c $name -l resume -x -d 'Go on with the state in this descriptor'

    complete -c $name -l seccomp-notify-socket -r -F -d 'Does nothing'
    complete -c $name -l seccomp-notify-plugins -x -d 'Does nothing'
end
