#!/bin/sh
# The push against a real CKAN 2.12 with PostgreSQL and Redis, each started here, in folders of its own, and stopped again.
# Needs: postgresql and redis-server (Debian packages), and PYTHON with this project and its tests' requirements.
# CKAN lives in an environment of its own: where it can be imported, ckanapi raises other exceptions.
set -eu
PYTHON=${PYTHON:-python3}
here=$(cd "$(dirname "$0")" && pwd)
env=${CKAN_ENV:-$here/../../.venv-ckan}
work=$(mktemp -d)
chmod 755 "$work"
pg=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1)
[ -n "$pg" ] && command -v redis-server >/dev/null || { echo "install postgresql and redis-server first" >&2; exit 2; }
[ -x "$env/bin/ckan" ] || { python3 -m venv "$env" && "$env/bin/pip" install --quiet 'ckan[requirements]==2.12.0'; }

as_postgres() { if [ "$(id -u)" = 0 ]; then runuser -u postgres -- "$@"; else "$@"; fi; }
stop() {
  for file in "$work"/*.pid; do [ -f "$file" ] && kill "$(cat "$file")" 2>/dev/null || true; done
  as_postgres "$pg/pg_ctl" -D "$work/pg" -m immediate stop >/dev/null 2>&1 || true
  rm -rf "$work"
}
trap stop EXIT INT TERM
cd "$work"

mkdir pg && { [ "$(id -u)" != 0 ] || chown postgres pg; }
as_postgres "$pg/initdb" -D "$work/pg" -U ckan -A trust >/dev/null
as_postgres "$pg/pg_ctl" -D "$work/pg" -w -o "-p 54329 -c listen_addresses=127.0.0.1 -k $work/pg" -l "$work/pg/log" start >/dev/null
"$pg/createdb" -h 127.0.0.1 -p 54329 -U ckan ckan
redis-server --port 63799 --bind 127.0.0.1 --save '' >redis.log 2>&1 & echo $! >redis.pid
schema=$(find "$env" -path '*config/solr/schema.xml' | head -1)
"$env/bin/python" "$here/solr_stand_in.py" "$schema" 58984 >solr.log 2>&1 & echo $! >solr.pid

"$env/bin/ckan" generate config ckan.ini >/dev/null
sed -i "s#^sqlalchemy.url.*#sqlalchemy.url = postgresql://ckan@127.0.0.1:54329/ckan#
s#^solr_url.*#solr_url = http://127.0.0.1:58984/solr/ckan#
s#^ckan.redis.url.*#ckan.redis.url = redis://127.0.0.1:63799/0#
s#^ckan.storage_path.*#ckan.storage_path = $work/store#
s#^ckan.site_url.*#ckan.site_url = http://127.0.0.1:55055#" ckan.ini
mkdir store
ckan="$env/bin/ckan -c $work/ckan.ini"
sleep 2
$ckan db init >init.log 2>&1
$ckan user add tester email=tester@example.org password=not-a-secret-1 >>init.log 2>&1
$ckan sysadmin add tester >>init.log 2>&1
token=$($ckan user token add tester push 2>/dev/null | tail -1 | tr -d '[:space:]')
$ckan run -H 127.0.0.1 -p 55055 --disable-reloader >run.log 2>&1 & echo $! >ckan.pid
for _ in $(seq 60); do curl -fs http://127.0.0.1:55055/api/action/status_show >/dev/null && break; sleep 1; done

cd "$here/../.."
DIGITALSTADT_TEST_CKAN_URL=http://127.0.0.1:55055 DIGITALSTADT_TEST_CKAN_TOKEN=$token \
  "$PYTHON" -m pytest tests/publication/test_real_ckan.py "$@"
