#!/usr/bin/env bash
# Certificates for the host outside the mesh and for its client, of an authority made on the spot.
# usage: make-certificates.sh FOLDER     writes FOLDER/server and FOLDER/client, each with ca.pem, cert.pem, key.pem
set -euo pipefail

folder=${1:?usage: make-certificates.sh FOLDER}
mkdir -p "$folder/server" "$folder/client"
cd "$folder"

quiet() { "$@" 2>/dev/null || { echo "failed: $*" >&2; exit 1; }; }

quiet openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 \
  -subj "/O=External Service/CN=External Service Root" -keyout ca-key.pem -out ca.pem

# issue NAME SUBJECT EXTENSIONS
issue() {
  quiet openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \
    -subj "$2" -keyout "$1/key.pem" -out "$1/request.pem"
  quiet openssl x509 -req -in "$1/request.pem" -CA ca.pem -CAkey ca-key.pem -CAcreateserial \
    -days 30 -extfile <(printf '%s\n' "$3") -out "$1/cert.pem"
  rm "$1/request.pem"
  cp ca.pem "$1/ca.pem"
}

issue server "/CN=api.external-service.com" $'subjectAltName=DNS:api.external-service.com\nextendedKeyUsage=serverAuth'
issue client "/O=Shop/CN=payment-service" "extendedKeyUsage=clientAuth"
echo "made $(ls -d server client | tr '\n' ' ')in $folder"
