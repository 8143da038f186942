#!/bin/sh
# The push against a real CKAN 2.12 with PostgreSQL and Redis, each started here, in a folder and on ports of its own, and
# stopped again. Needs: postgresql and redis-server (Debian packages), PYTHON with this project and its tests'
# requirements, and CKAN in an environment of its own (CKAN_ENV; `make .venv-ckan/bin/.installed`): where CKAN can be
# imported, ckanapi raises other exceptions.
set -eu
PYTHON=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
env=${CKAN_ENV:-$here/../../.venv-ckan}
pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1)
[ -n "$pg" ] && command -v redis-server >/dev/null || { echo "install postgresql and redis-server first" >&2; exit 2; }
[ -x "$env/bin/ckan" ] || { echo "no CKAN in $env: make .venv-ckan/bin/.installed" >&2; exit 2; }
work=$(mktemp -d)
chmod 755 "$work"

as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
stop() {
  code=$?
  for file in "$work"/*.pid; do [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true; done
  as_postgres "$pg/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null 2>&1 || true
  if [ "$code" -gt 1 ]; then tail -n 20 "$work"/*.log >&2 2>/dev/null || true; fi
  rm -rf "$work"
  exit "$code"
}
trap stop EXIT
trap 'exit 130' INT TERM
cd "$work"

ports=$("$PYTHON" -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
print(*(s.getsockname()[1] for s in held), sep="\n")')
port() { echo "$ports" | sed -n "$1p"; }
pg_port=$(port 1) redis_port=$(port 2) solr_port=$(port 3) ckan_port=$(port 4)
site=http://127.0.0.1:$ckan_port

answers() { # waits until something answers: answers URL, or answers PORT
  "$PYTHON" - "$1" <<'WAIT' || { echo "nothing answers at $1" >&2; exit 3; }
import socket, sys, time, urllib.request
for _ in range(240):
    try:
        if sys.argv[1].startswith("http"):
            urllib.request.urlopen(sys.argv[1], timeout=10).close()
        else:
            socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=1).close()
        raise SystemExit(0)
    except OSError:
        time.sleep(0.25)
raise SystemExit(1)
WAIT
}

mkdir pg store && { [ "$(id -u)" != 0 ] || chown postgres pg; }
as_postgres "$pg/initdb" -D "$work/pg" -U ckan -A trust >/dev/null
as_postgres "$pg/pg_ctl" -D "$work/pg" -w -o "-p $pg_port -c listen_addresses=127.0.0.1 -c fsync=off -k $work/pg" \
  -l "$work/pg/log" start >/dev/null
"$pg/createdb" -h 127.0.0.1 -p "$pg_port" -U ckan ckan
redis-server --port "$redis_port" --bind 127.0.0.1 --save '' >redis.log 2>&1 & echo $! >redis.pid
schema=$(find "$env" -path '*config/solr/schema.xml' | head -1)
"$env/bin/python" "$here/solr_stand_in.py" "$schema" "$solr_port" >solr.log 2>&1 & echo $! >solr.pid

"$env/bin/ckan" generate config ckan.ini >/dev/null
sed -i "s#^sqlalchemy.url.*#sqlalchemy.url = postgresql://ckan@127.0.0.1:$pg_port/ckan#
s#^solr_url.*#solr_url = http://127.0.0.1:$solr_port/solr/ckan#
s#^ckan.redis.url.*#ckan.redis.url = redis://127.0.0.1:$redis_port/0#
s#^ckan.storage_path.*#ckan.storage_path = $work/store#
s#^ckan.site_url.*#ckan.site_url = $site#" ckan.ini
answers "$redis_port" && answers "$solr_port"
ckan() { "$env/bin/ckan" -c "$work/ckan.ini" "$@"; }
ckan db init >init.log 2>&1
ckan user add tester email=tester@example.org password=not-a-secret-1 >>init.log 2>&1
ckan sysadmin add tester >>init.log 2>&1
token=$(ckan user token add tester push 2>>init.log | tail -1 | tr -d '[:space:]')
"$env/bin/ckan" -c ckan.ini run -H 127.0.0.1 -p "$ckan_port" --disable-reloader >run.log 2>&1 & echo $! >ckan.pid
answers "$site/api/action/status_show"

cd "$here/../.."
DIGITALSTADT_TEST_CKAN_URL=$site DIGITALSTADT_TEST_CKAN_TOKEN=$token \
  "$PYTHON" -m pytest tests/publication/test_real_ckan.py "$@"
