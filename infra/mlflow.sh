#!/usr/bin/env bash
# MLflow's server behind users and passwords, its numbers in PostgreSQL, its files in a bucket. Everything comes from the
# environment, so that no secret stands in a file of an image or a repository:
#
#   MLFLOW_BACKEND_STORE_URI      postgresql://USER:PASSWORD@HOST/mlflow
#   MLFLOW_AUTH_DATABASE_URI      postgresql://USER:PASSWORD@HOST/mlflow_auth    users and what they may do
#   MLFLOW_ARTIFACTS_DESTINATION  s3://BUCKET/mlflow    clients go through the server, and need no keys of the bucket
#   MLFLOW_AUTH_ADMIN_USERNAME, MLFLOW_AUTH_ADMIN_PASSWORD (12 characters or more)    the first user, made at first start
#   MLFLOW_FLASK_SERVER_SECRET_KEY                                                  signs sessions
#   MLFLOW_SERVER_ALLOWED_HOSTS   names by which clients call it, such as mlflow:5000
#   MLFLOW_HOST, MLFLOW_PORT, MLFLOW_WORKERS                                        127.0.0.1, 5000, 2
set -euo pipefail

for name in MLFLOW_BACKEND_STORE_URI MLFLOW_AUTH_DATABASE_URI MLFLOW_ARTIFACTS_DESTINATION \
    MLFLOW_AUTH_ADMIN_USERNAME MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY; do
    if [[ -z ${!name:-} ]]; then
        echo "error: $name is not set; the head of $0 lists what the server needs" >&2
        exit 2
    fi
done

# MLflow reads its users' database from a file only, so the password is taken out of what goes there: PostgreSQL's client
# takes it from PGPASSWORD. Whatever becomes of this process, what it leaves behind holds no secret.
users=$MLFLOW_AUTH_DATABASE_URI
if [[ ${users#*\?} =~ (^|&)(ssl)?password= && $users == *\?* ]]; then
    echo "error: MLFLOW_AUTH_DATABASE_URI has a password behind its '?'; give postgresql://USER:PASSWORD@HOST/DATABASE" >&2
    exit 2
fi
if [[ ! $users =~ ^(postgresql(\+psycopg2?)?|sqlite):// ]]; then
    echo "error: MLFLOW_AUTH_DATABASE_URI names no PostgreSQL; give postgresql://USER:PASSWORD@HOST/DATABASE" >&2
    exit 2
fi
before=${users%%\?*}
if [[ $users == postgresql* && ($before == *@*@* || ($before != *@* && $users == *@*)) ]]; then
    echo "error: MLFLOW_AUTH_DATABASE_URI has an @ or a ? too many; in a password write them %40 and %3F" >&2
    exit 2
fi
if [[ $users =~ ^(postgresql[^:]*://[^:@/?]*):([^@]*)@(.*)$ ]]; then
    head=${BASH_REMATCH[1]} word=${BASH_REMATCH[2]} tail=${BASH_REMATCH[3]}
    if [[ $word == *%00* ]]; then
        echo "error: the password of MLFLOW_AUTH_DATABASE_URI has a %00, which no variable holds; take another one" >&2
        exit 2
    fi
    word=$(printf '%s' "$word" | sed -E 's/\\/\\\\/g; s/%([0-9A-Fa-f]{2})/\\x\1/g')
    printf -v word '%b' "$word" # %40 is an @, and a % before anything else is one
    if [[ -n ${PGPASSWORD:-} && $PGPASSWORD != "$word" ]]; then
        echo "error: PGPASSWORD is another password than that of MLFLOW_AUTH_DATABASE_URI; unset it" >&2
        exit 2
    fi
    users=$head@$tail
    export PGPASSWORD=$word
elif [[ $before == *://*:*@* ]]; then
    echo "error: the user of MLFLOW_AUTH_DATABASE_URI has a character that is written percent-encoded: %2F for a /" >&2
    exit 2
fi
unset MLFLOW_AUTH_DATABASE_URI
umask 077
folder=$(TMPDIR=$([[ -w /dev/shm ]] && echo /dev/shm || echo "${TMPDIR:-/tmp}") mktemp -d)
cat >"$folder/auth.ini" <<INI
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = ${users//%/%%}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# Metrics come by the thousand: who was let in is believed for a minute.
auth_cache_ttl_seconds = 60
INI
export MLFLOW_AUTH_CONFIG_PATH=$folder/auth.ini MLFLOW_DISABLE_TELEMETRY=true

# Read from the environment by MLflow itself: a command line can be seen by every user of the machine.
export MLFLOW_BACKEND_STORE_URI MLFLOW_ARTIFACTS_DESTINATION
exec mlflow server --app-name basic-auth --serve-artifacts --workers "${MLFLOW_WORKERS:-2}" \
    --host "${MLFLOW_HOST:-127.0.0.1}" --port "${MLFLOW_PORT:-5000}"
