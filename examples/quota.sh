#!/bin/sh
# A monthly quota in front of a job, with karmactl: sh examples/quota.sh 127.0.0.1:8080 42 3
#
# Asks for one mail of user 42, who may send 3 a month. Exit code 0: go ahead; 1: the quota is used up; 2: nobody
# could be asked, and what that means is the application's decision.

node=$1 user=$2 limit=$3
found=$(karmactl limit consume mails "$user" --limit "$limit" --window month \
    --node "$node" --timeout 0.5 --output json)
code=$?
# 4 is a refusal: of the limit, which prints what is left of it, or of the whole request, which prints nothing.
case $code,$found in
    0,*) ;;
    4,?*) code=1 ;;
    *) exit 2 ;;
esac
printf '%s\n' "$found" | tr -d ' {}"\n' | tr ',' '\n' |
    sed -n 's/^\(allowed\|used\|remaining\):/\1=/p' | paste -sd ' ' -
exit $code
