# After an installation, of either package; $1 is how many versions of it there are now. Running monitors become the
# program that is installed. One that cannot goes on as it was, and the installation is done in any case. Not in a
# chroot, whose /proc may be the host's.
if [ "$1" -gt 1 ] && [ /proc/1/root -ef / ]; then
    echo "conward: replacing running monitors"
    timeout 300 /usr/bin/conwardctl upgrade --all ||
        echo "conward: not all were replaced; those go on as they were. Again: conwardctl upgrade --all" >&2
fi
exit 0
