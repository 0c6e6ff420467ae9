# Before a removal, of either package; $1 is how many versions of it there will be.
if [ "$1" -eq 0 ] && [ /proc/1/root -ef / ]; then
    running=$(timeout 60 /usr/bin/conwardctl ps --json 2>/dev/null | grep -c '"service": "ok"')
    [ "$running" = 0 ] ||
        echo "conward: $running running monitors go on until their containers end; new containers get another one"
fi
exit 0
