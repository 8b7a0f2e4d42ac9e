#!/usr/bin/env bash
# Signs tokens as an issuer would, with nothing but openssl.
#
#   token.sh FOLDER jwks          prints the public key set; makes the key if FOLDER has none
#   token.sh FOLDER token CLAIMS  prints a token (RS256) with these claims, a JSON object
set -euo pipefail

folder=${1:?which folder holds the key?}
key=$folder/issuer.pem

base64url() { openssl base64 -A | tr '+/' '-_' | tr -d '='; }

if [[ ! -e $key ]]; then
    (umask 077 && openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out "$key" 2>/dev/null)
fi

case ${2:?jwks or token?} in
jwks)
    modulus=$(openssl rsa -in "$key" -noout -modulus)
    n=$(printf '%b' "$(sed 's/^Modulus=//; s/../\\x&/g' <<<"$modulus")" | base64url)
    printf '{"keys":[{"kty":"RSA","use":"sig","alg":"RS256","kid":"shop-1","n":"%s","e":"AQAB"}]}\n' "$n"
    ;;
token)
    header=$(printf '{"alg":"RS256","kid":"shop-1","typ":"JWT"}' | base64url)
    payload=$(printf '%s' "${3:?which claims?}" | base64url)
    signature=$(printf '%s.%s' "$header" "$payload" | openssl dgst -sha256 -sign "$key" | base64url)
    printf '%s.%s.%s\n' "$header" "$payload" "$signature"
    ;;
*)
    echo "token.sh: '$2' is neither jwks nor token" >&2
    exit 2
    ;;
esac
