#!/usr/bin/env bash
# cumulus-etl on a folder of NDJSON, de-identified into NDJSON: no cTAKES, no philter, no cloud. Arguments: its
# program, the input, a folder to work in.
set -euo pipefail
rm -rf "$3" && mkdir -p "$3/in"
ln "$2"/*.ndjson "$3/in/"
"$1" etl --output-format=ndjson --export-group=bench --export-timestamp=2025-12-31T00:00:00+00:00 \
  "$3/in" "$3/out" "$3/phi"
test -s "$3"/out/patient/patient.000.ndjson
rm -rf "$3"
