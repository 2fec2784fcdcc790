#!/usr/bin/env bash
# Install what some tests need beside the embedded PostgreSQL: a PostgreSQL with TLS; PgBouncer 1.22 or
# later, which goes to .pgbouncer if the system has none: built from the source package of the first
# Debian that has it; Chromium; Redis, RabbitMQ, PHP for the command line, and libfaketime. What is
# there is left alone. For Debian and Ubuntu, as root; elsewhere install them by the system's own means.
set -euo pipefail
cd "$(dirname "$0")/../.."

release=trixie
folder=$PWD/.pgbouncer
log=$folder/log

recent() {
    local version
    version=$("$1" --version 2>/dev/null | sed -n 's/^PgBouncer \([0-9]*\.[0-9]*\).*/\1/p')
    [ -n "$version" ] && [ "$(printf '%s\n' 1.22 "$version" | sort -V | head -n 1)" = 1.22 ]
}

has_server() { compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

has_pgbouncer() { recent pgbouncer || recent "$folder/pgbouncer"; }

has_chromium() { command -v chromium chromium-browser google-chrome >/dev/null; }

has_redis() { command -v redis-server valkey-server >/dev/null; }

has_rabbitmq() { command -v rabbitmq-server >/dev/null || [ -x /usr/sbin/rabbitmq-server ]; }

has_php() { command -v php >/dev/null; }

has_faketime() { compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null; }

# Daemons that are installed are not to run beside those that the tests start.
install_stopped() {
    local policy=/usr/sbin/policy-rc.d
    if [ -e "$policy" ]; then
        apt-get install -y --no-install-recommends "$@"
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        apt-get install -y --no-install-recommends "$@" || { rm "$policy"; return 1; }
        rm "$policy"
    fi
}

build() {
    apt-get install -y --no-install-recommends dpkg-dev gcc libevent-dev libssl-dev make pkg-config
    # A list of sources of our own: the system's goes on without that release.
    local mirror keys=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' 'Component: main' |
        grep -v security | head -n 1)
    echo "deb-src [signed-by=$keys] $mirror $release main" >"$folder/sources.list"
    local apt=(-o "Dir::Etc::SourceList=$folder/sources.list" -o Dir::Etc::SourceParts=-
        -o "Dir::State::Lists=$folder/lists" -o "Dir::Cache=$folder/cache"
        -o APT::Sandbox::User=root)
    mkdir -p "$folder"/{lists/partial,cache/archives/partial,source}
    apt-get "${apt[@]}" update
    cd "$folder/source"
    apt-get "${apt[@]}" source pgbouncer
    cd pgbouncer-*/
    ./configure --without-cares --disable-debug
    make -j2 pgbouncer
    cp pgbouncer "$folder/"
    cd "$folder"
    rm -r sources.list source lists cache
}

if has_server && has_pgbouncer && has_chromium && has_redis && has_rabbitmq && has_php && has_faketime; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "Install PostgreSQL with TLS, RabbitMQ, and PgBouncer 1.22 or later, Chromium," \
        "redis-server and php on PATH." >&2
    exit 1
fi
mkdir -p "$folder"
trap 'status=$?; [ $status = 0 ] || cat "$log" >&2' EXIT
{
    apt-get update
    has_server || apt-get install -y --no-install-recommends postgresql
    has_chromium || apt-get install -y --no-install-recommends chromium
    has_redis || install_stopped redis-server
    has_rabbitmq || install_stopped rabbitmq-server
    has_php || apt-get install -y --no-install-recommends php-cli
    has_faketime || apt-get install -y --no-install-recommends libfaketime
    # The last one: it changes the folder.
    has_pgbouncer || build
} >"$log" 2>&1
has_pgbouncer && has_chromium && has_redis && has_rabbitmq && has_php && has_faketime
