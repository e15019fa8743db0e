#!/bin/sh
# A filter for boot.sh.
tr a-z A-Z
printf ' %s colour=%s' "$1" "$COLOUR"
