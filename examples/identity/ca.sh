#!/usr/bin/env bash
# Makes a CA as an operator would, with nothing but openssl: a root that stays where it is, and an intermediate that is
# handed to the mesh.
#
#   ca.sh FOLDER NAME   writes FOLDER/NAME/{ca-cert,ca-key,root-cert,cert-chain}.pem; makes FOLDER's root if it has none
set -euo pipefail
umask 077

folder=${1:?which folder holds the root?}
mesh=$folder/${2:?what is the intermediate called?}
mkdir -p "$mesh"

if [[ ! -e $folder/root-key.pem ]]; then
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -nodes -days 3650 -subj "/O=Example Corp/CN=Root" \
        -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign,cRLSign \
        -keyout "$folder/root-key.pem" -out "$folder/root-cert.pem" 2>/dev/null
fi
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/O=Example Corp/CN=Mesh $2" \
    -keyout "$mesh/ca-key.pem" -out "$mesh/ca.csr" 2>/dev/null
openssl x509 -req -in "$mesh/ca.csr" -CA "$folder/root-cert.pem" -CAkey "$folder/root-key.pem" -days 365 \
    -extfile <(printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n') \
    -out "$mesh/ca-cert.pem" 2>/dev/null
rm "$mesh/ca.csr"
cp "$mesh/ca-cert.pem" "$mesh/cert-chain.pem"
cp "$folder/root-cert.pem" "$mesh/root-cert.pem"
