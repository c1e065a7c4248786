#!/usr/bin/env bash
# Run a command beside a PostgreSQL of its own, whose URI is in MIGA_BENCH_POSTGRES; it is gone afterwards.
# Usage: with_postgres.sh COMMAND...
set -euo pipefail

programs() {  # Debian keeps initdb and pg_ctl out of PATH
  if command -v pg_ctl > /dev/null && command -v initdb > /dev/null; then
    dirname "$(readlink -f "$(command -v initdb)")"
  else
    ls -d /usr/lib/postgresql/*/bin 2> /dev/null | sort -V | tail -n 1
  fi
}

found=$(programs || true)
if [ -z "$found" ] || [ ! -x "$found/initdb" ]; then
  if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    apt-get update -qq && apt-get install -y -qq postgresql > /dev/null
    found=$(programs)
  else
    echo "PostgreSQL is not installed: install it (Debian: apt-get install postgresql) and try again" >&2
    exit 1
  fi
fi

as_owner=()  # initdb refuses root; the bash of macOS takes an empty list for an unset one
owner=$(id -un)
if [ "$(id -u)" = 0 ]; then
  owner=postgres
  as_owner=(runuser -u postgres --)
fi

folder=$(mktemp -d /tmp/postgres.XXXXXX)
stop() {
  cd /
  ${as_owner[@]+"${as_owner[@]}"} "$found/pg_ctl" -D "$folder/data" -m immediate stop > /dev/null 2>&1 || true
  rm -rf "$folder"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

chmod 755 "$folder"
[ "$(id -u)" = 0 ] && chown postgres "$folder"
port=$("${PY:-python3}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
here=$PWD
cd "$folder"
${as_owner[@]+"${as_owner[@]}"} "$found/initdb" -D "$folder/data" -U "$owner" -A trust > "$folder/initdb.log"
${as_owner[@]+"${as_owner[@]}"} "$found/pg_ctl" -D "$folder/data" -w -t 60 -l "$folder/data/log" \
  -o "-p $port -k $folder -c listen_addresses=127.0.0.1 -c fsync=off" start > /dev/null
${as_owner[@]+"${as_owner[@]}"} "$found/createdb" -h 127.0.0.1 -p "$port" -U "$owner" mlflow
cd "$here"
export MIGA_BENCH_POSTGRES="postgresql+psycopg2://$owner@127.0.0.1:$port/mlflow"
"$@"
