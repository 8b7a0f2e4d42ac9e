"""Makes cases.json: key sets, rules, requests with tokens, and the answers expected.

Tokens and key sets come from programs that have nothing to do with ours, so that a mistake of ours is not made twice:

    pip install pyjwt==2.15.1 jwcrypto==1.6.1
    python3 make.py > cases.json

Keys are new each time; their private halves are not kept. What is expected was written by hand, after the reference
(authorization 16 and 19) and Envoy's sources; envoy.rs compares it with a real Envoy 1.40. A case marked `stricter` is one
that Envoy accepts, or answers with other words, and why it is refused all the same.
"""

import base64
import hashlib
import hmac
import json
import sys

import jwt
from jwcrypto.jwk import JWK
from jwcrypto.jws import JWS

ISSUER = "https://idp.example"
OTHER = "https://other.example"
FUTURE = 4102444800  # 2100
PAST = 1000000000  # 2001


def b64(data):
    if isinstance(data, str):
        data = data.encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def rsa(bits=2048, **more):
    return JWK.generate(kty="RSA", size=bits, **more)


def pem(key):
    return key.export_to_pem(private_key=True, password=None)


def key_set(*keys):
    return {"keys": [key if isinstance(key, dict) else key.export_public(as_dict=True) for key in keys]}


def claims(**more):
    all = {"iss": ISSUER, "sub": "alice", "exp": FUTURE}
    all.update(more)
    return {name: value for name, value in all.items() if value is not ...}


def token(key, alg, payload=None, **headers):
    """By PyJWT."""
    payload = claims() if payload is None else payload
    secret = key if isinstance(key, (bytes, str)) else pem(key)
    # Not jwt.encode(), which checks claims that are to be wrong here.
    return jwt.PyJWS().encode(json.dumps(payload).encode(), secret, algorithm=alg, headers={"typ": "JWT", **headers})


def raw(header, payload, key=None, alg="RS256"):
    """Signed by jwcrypto where a key is given, over texts that no library would write."""
    header, payload = (part if isinstance(part, (str, bytes)) else json.dumps(part) for part in (header, payload))
    return signed(f"{b64(header)}.{b64(payload)}", key, alg)


def signed(parts, key, alg="RS256"):
    from jwcrypto.jwa import JWA

    signature = JWA.signing_alg(alg).sign(key, parts.encode()) if key else b"signature"
    return f"{parts}.{b64(signature)}"


keys = {
    "rsa": rsa(kid="rsa", use="sig"),
    "rsa3072": rsa(3072, kid="rsa3072", alg="RS512"),
    "rsa1024": rsa(1024, kid="rsa1024"),
    "plain": rsa(),
    "es256": JWK.generate(kty="EC", crv="P-256", kid="es256"),
    "es384": JWK.generate(kty="EC", crv="P-384", kid="es384"),
    "es512": JWK.generate(kty="EC", crv="P-521", kid="es512"),
    "ed": JWK.generate(kty="OKP", crv="Ed25519", kid="ed"),
    "stranger": rsa(kid="rsa"),
    "enc": rsa(kid="enc", use="enc"),
}
SECRET = b"a secret of some thirty-two bytes, and more than that, to suit all"
oct_key = {"kty": "oct", "kid": "oct", "k": b64(SECRET)}
public_pem = keys["rsa"].export_to_pem()
public_set = {name: key.export_public(as_dict=True) for name, key in keys.items()}

sets = {
    "all": key_set(*(keys[n] for n in ("rsa", "rsa3072", "es256", "es384", "es512", "ed")), oct_key),
    "rsa": key_set(keys["rsa"]),
    "plain": key_set(keys["plain"]),
    "two-plain": key_set({k: v for k, v in public_set["stranger"].items() if k != "kid"}, keys["plain"]),
    "es256": key_set(keys["es256"]),
    "weak": key_set(keys["rsa1024"]),
    "enc": key_set(keys["enc"], keys["plain"]),
    "oct": {"keys": [oct_key]},
    "mixed": {
        "keys": [
            {"kty": "RSA", "kid": "broken", "n": "AQAB", "e": "AQAB"},
            {"kty": "new", "kid": "unknown"},
            {"kid": "no type"},
            "no object",
            public_set["rsa"],
        ]
    },
    "private": {"keys": [keys["rsa"].export(as_dict=True)]},
    "not-on-curve": {"keys": [{**public_set["es256"], "y": public_set["es256"]["x"]}]},
    "empty": {"keys": []},
}
for name in ("es256", "ed"):
    sets[f"{name}-without-kid"] = key_set({k: v for k, v in public_set[name].items() if k != "kid"})

outputs = {
    "outputPayloadToHeader": "x-payload",
    "outputClaimToHeaders": [
        {"header": "X-Sub", "claim": "sub"},
        {"header": "x-level", "claim": "level"},
        {"header": "x-admin", "claim": "admin"},
        {"header": "x-half", "claim": "half"},
        {"header": "x-minus", "claim": "minus"},
        {"header": "x-big", "claim": "big"},
        {"header": "x-groups", "claim": "groups"},
        {"header": "x-city", "claim": "address.city"},
        {"header": "x-address", "claim": "address"},
        {"header": "x-none", "claim": "nothing"},
        {"header": "x-empty", "claim": "empty"},
        {"header": "x-null", "claim": "null"},
        {"header": "x-dotted", "claim": "a.b"},
    ],
}


def rule(jwks="all", issuer=ISSUER, **more):
    return {"issuer": issuer, "jwks": jwks, **more}


configs = {
    "one": [rule()],
    "kept": [rule(forwardOriginalToken=True)],
    "any-issuer": [rule(issuer="")],
    "audiences": [rule(audiences=["aud-a", "https://aud-b/", "http://aud-c"])],
    "header": [rule(fromHeaders=[{"name": "X-Token", "prefix": "Token "}])],
    "bare": [rule(fromHeaders=[{"name": "x-token"}])],
    "two-headers": [rule(fromHeaders=[{"name": "x-a"}, {"name": "x-b", "prefix": "B "}])],
    "param": [rule(fromParams=["tok"])],
    "param-kept": [rule(fromParams=["tok"], forwardOriginalToken=True)],
    "cookie": [rule(fromCookies=["tok"])],
    "cookie-kept": [rule(fromCookies=["tok"], forwardOriginalToken=True)],
    "everywhere": [rule(fromHeaders=[{"name": "x-token"}], fromParams=["tok"], fromCookies=["tok"])],
    "outputs": [rule(**outputs)],
    "two": [rule(), rule(issuer=OTHER, jwks="plain")],
    "two-apart": [
        rule(fromHeaders=[{"name": "x-one"}], outputPayloadToHeader="x-payload-one"),
        rule(issuer=OTHER, jwks="plain", fromHeaders=[{"name": "x-two"}], outputPayloadToHeader="x-payload-two"),
    ],
    "two-same": [rule(jwks="es256", audiences=["never"]), rule(jwks="rsa")],
    **{name: [rule(jwks=name)] for name in sets if name != "all"},
}

cases = []


def case(name, config, status=200, body=None, headers=(), path="/a", method="GET", **more):
    """`upstream`: path and headers that the application sees; `absent`: headers that it does not."""
    cases.append({"name": name, "config": config, "method": method, "path": path, "headers": list(headers),
                  "status": status, **({"body": body} if body else {}), **more})


def bearer(text):
    return [["authorization", f"Bearer {text}"]]


def refused(name, text, body, config="one", status=401, **more):
    case(name, config, status, body, bearer(text), **more)


def accepted(name, text, config="one", **more):
    case(name, config, headers=bearer(text), **more)


FORM = "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections"
FAILS = "Jwt verification fails"
MISMATCH = "Jwks doesn't have key to match kid or alg from Jwt"
NO_KEYS = "Jwks doesn't have any valid public key"
ISS = "Jwt issuer is not configured"
EXPIRED = "Jwt is expired"
AUD = "Audiences in Jwt are not allowed"
HEADER_64 = "Jwt header is an invalid Base64url encoded"
HEADER_JSON = "Jwt header is an invalid JSON"
PAYLOAD_64 = "Jwt payload is an invalid Base64url encoded"
PAYLOAD_JSON = "Jwt payload is an invalid JSON"
SIGNATURE_64 = "Jwt signature is an invalid Base64url encoded"
ALG = "Jwt header [alg] field is required and must be a string"
UNKNOWN_ALG = "Jwt header [alg] is not supported"

good = token(keys["rsa"], "RS256", kid="rsa")
other = token(keys["plain"], "RS256", claims(iss=OTHER))
expired = token(keys["rsa"], "RS256", claims(exp=PAST), kid="rsa")
forged = token(keys["stranger"], "RS256", kid="rsa")

# The table of section 19.
case("no token", "one", absent=["x-payload"])
accepted("valid token", good, absent=["authorization"])
refused("malformed token", "nonsense", FORM)
refused("wrong signature", forged, FAILS)
refused("unknown key", token(keys["rsa"], "RS256", kid="who"), MISMATCH)
refused("expired", expired, EXPIRED)
refused("not yet valid", token(keys["rsa"], "RS256", claims(nbf=FUTURE), kid="rsa"), "Jwt not yet valid")
refused("wrong issuer", token(keys["rsa"], "RS256", claims(iss="https://evil.example"), kid="rsa"), ISS)
refused("no issuer", token(keys["rsa"], "RS256", claims(iss=...), kid="rsa"), ISS)
refused("audience not listed", token(keys["rsa"], "RS256", claims(aud="aud-x"), kid="rsa"), AUD, "audiences", 403)
refused("no audience", token(keys["rsa"], "RS256", claims(), kid="rsa"), AUD, "audiences", 403)
case("CORS preflight", "one", method="OPTIONS",
     headers=bearer("nonsense") + [["origin", "https://a.example"], ["access-control-request-method", "GET"]])
case("OPTIONS that is no preflight", "one", 401, FORM, bearer("nonsense") + [["origin", "https://a.example"]],
     method="OPTIONS")
case("no preflight with an empty origin", "one", 401, FORM, method="OPTIONS",
     headers=bearer("nonsense") + [["origin", ""], ["access-control-request-method", "GET"]])
case("GET with the headers of a preflight", "one", 401, FORM,
     bearer("nonsense") + [["origin", "https://a.example"], ["access-control-request-method", "GET"]])

# Audiences.
for aud in ("aud-a", "https://aud-a", "http://aud-a/", "aud-a/", "aud-b", "aud-c", ["x", "aud-a"]):
    accepted(f"audience {aud}", token(keys["rsa"], "RS256", claims(aud=aud), kid="rsa"), "audiences")
for aud in ("AUD-A", "aud-a//", "ftp://aud-a", "https://http://aud-a", [], ""):
    refused(f"audience {aud!r}", token(keys["rsa"], "RS256", claims(aud=aud), kid="rsa"), AUD, "audiences", 403)
accepted("audience that nobody asks for", token(keys["rsa"], "RS256", claims(aud="x"), kid="rsa"))
refused("expired before audience", token(keys["rsa"], "RS256", claims(aud="x", exp=PAST), kid="rsa"), EXPIRED, "audiences")
refused("audience before signature", token(keys["stranger"], "RS256", claims(aud="x"), kid="rsa"), AUD, "audiences", 403)

# Algorithms.
for alg in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"):
    accepted(alg, token(keys["rsa"], alg, kid="rsa"))
accepted("RS512 by a key for it", token(keys["rsa3072"], "RS512", kid="rsa3072"))
refused("RS256 by a key for RS512", token(keys["rsa3072"], "RS256", kid="rsa3072"), MISMATCH)
for alg, name in (("ES256", "es256"), ("ES384", "es384"), ("ES512", "es512"), ("EdDSA", "ed")):
    accepted(alg, token(keys[name], alg, kid=name))
for alg in ("HS256", "HS384", "HS512"):
    accepted(alg, token(SECRET, alg, kid="oct"), "oct")
accepted("no kid in the token, all keys are tried", token(keys["rsa"], "RS256"))
accepted("no kid in the set", token(keys["plain"], "RS256", kid="any"), "plain")
accepted("no kid anywhere, the second key", token(keys["plain"], "RS256"), "two-plain")
refused("no kid anywhere, no key", token(keys["rsa"], "RS256"), FAILS, "two-plain")
accepted("empty kid", token(keys["rsa"], "RS256", kid=""))
accepted("ES256 without kid", token(keys["es256"], "ES256"), "es256-without-kid")
refused("Ed25519 signature of another length",
        token(keys["ed"], "EdDSA").rsplit(".", 1)[0] + "." + b64(b"x" * 63),
        "Jwt ED25519 signature is wrong length", "ed-without-kid")
refused("Ed25519 forged", token(keys["ed"], "EdDSA").rsplit(".", 1)[0] + "." + b64(b"x" * 64), FAILS, "ed-without-kid")
accepted("keys that cannot be used are left out", good, "mixed")
accepted("a private key's public half", good, "private")
refused("no usable key", good, NO_KEYS, "empty", unknown_to_envoy=True)
refused("a point that is not on the curve", token(keys["es256"], "ES256"), NO_KEYS, "not-on-curve",
        unknown_to_envoy=True)
refused("key of 1024 bits", token(keys["rsa1024"], "RS256", kid="rsa1024"), NO_KEYS, "weak",
        stricter="RFC 7518 3.3 demands 2,048 bits")
refused("key that is for encryption", token(keys["enc"], "RS256", kid="enc"), FAILS, "enc",
        stricter="RFC 7517 4.2: use is 'enc'")

# Confusion.
refused("alg none", raw({"alg": "none"}, claims()), UNKNOWN_ALG)
refused("alg none without signature", f'{b64(json.dumps({"alg": "none"}))}.{b64(json.dumps(claims()))}.', FORM)
refused("alg None", raw({"alg": "None"}, claims()), UNKNOWN_ALG)
refused("no alg", raw({"typ": "JWT"}, claims(), keys["rsa"]), ALG)
refused("alg no text", raw({"alg": 1}, claims(), keys["rsa"]), ALG)
refused("alg null", raw({"alg": None}, claims(), keys["rsa"]), ALG)
refused("alg in lower case", raw({"alg": "rs256"}, claims(), keys["rsa"]), UNKNOWN_ALG)
refused("alg ES256K", raw({"alg": "ES256K"}, claims(), keys["rsa"]), UNKNOWN_ALG)
confused = f'{b64(json.dumps({"alg": "HS256"}))}.{b64(json.dumps(claims()))}'
for name, secret in (("PEM", public_pem), ("modulus", public_set["rsa"]["n"].encode())):
    mac = hmac.new(secret, confused.encode(), hashlib.sha256).digest()
    refused(f"HS256 with the public RSA key as secret ({name})", f"{confused}.{b64(mac)}", FAILS, "rsa")
refused("kid no text", raw({"alg": "RS256", "kid": 1}, claims(), keys["rsa"]), "Jwt header [kid] field is not a string")
refused("RS256 by name, ECDSA by signature", raw({"alg": "RS256"}, claims(), keys["es256"], "ES256"), FAILS,
        "es256-without-kid", stricter="the algorithm does not fit the key")
refused("ES512 by name, on P-256", raw({"alg": "ES512"}, claims(), keys["es256"], "ES256"), FAILS, "es256-without-kid")
refused("RS256 by name, Ed25519 by signature",
        raw({"alg": "RS256"}, claims(), keys["ed"], "EdDSA"), FAILS, "ed-without-kid",
        stricter="the algorithm does not fit the key")
hs = f'{b64(json.dumps({"alg": "RS256"}))}.{b64(json.dumps(claims()))}'
refused("RS256 by name, HMAC by signature",
        f"{hs}.{b64(hmac.new(SECRET, hs.encode(), hashlib.sha256).digest())}", FAILS, "oct",
        stricter="the algorithm does not fit the key")
mallory = rsa(kid="rsa")
for header in ({"jwk": mallory.export_public(as_dict=True)}, {"jku": "https://evil.example/keys"},
               {"x5u": "https://evil.example/c"}, {"x5c": ["MIIB"]}):
    name = next(iter(header))
    refused(f"{name} in the header is not believed", token(mallory, "RS256", kid="rsa", **header), FAILS)
    accepted(f"{name} in the header does no harm", token(keys["rsa"], "RS256", kid="rsa", **header))
refused("crit", raw({"alg": "RS256", "crit": ["exp"], "exp": FUTURE}, claims(), keys["rsa"]), FAILS,
        stricter="RFC 7515 4.1.11")
es_der = token(keys["es256"], "ES256", kid="es256").rsplit(".", 1)
refused("ECDSA signature of all zeros", es_der[0] + "." + b64(b"\0" * 64), FAILS)
refused("ECDSA signature with a byte too many", es_der[0] + "." + es_der[1] + "AAAA", FAILS)

# Shape.
for name, text in (("one dot", "a.b"), ("three dots", good + ".x"), ("nothing", "."), ("dots", ".."),
                   ("five parts, as of an encrypted token", "a.b.c.d.e")):
    refused(name, text, FORM)
head, body, sig = good.split(".")
refused("trailing dot", good + ".", FORM, stricter="RFC 7515 7.1: two dots")
refused("two dots in a row", f"{head}..{body}.{sig}", FORM, stricter="RFC 7515 7.1: two dots")
refused("leading dot", f".{good}", FORM, stricter="RFC 7515 7.1: two dots")
refused("no signature", f"{head}.{body}.", FORM)
refused("header is no base64url", f"!{head}.{body}.{sig}"[1:].replace(head, head[:-1] + "!"), HEADER_64)
refused("payload is no base64url", f"{head}.{body[:-1]}*.{sig}", PAYLOAD_64)
refused("signature is no base64url", f"{head}.{body}.{sig[:-1]}*", SIGNATURE_64)
refused("base64 of the other alphabet", f"{head}.{body}.{'+/' * 170}", SIGNATURE_64)
padded = f'{base64.urlsafe_b64encode(json.dumps({"alg": "RS256"}).encode()).decode()}.{b64(json.dumps(claims()))}'
assert "=" in padded
refused("padding", signed(padded, keys["rsa"]), HEADER_64, stricter="RFC 7515 2: no padding")
refused("trailing data", good + " x", SIGNATURE_64, stricter="RFC 7515 2: no white space")
refused("blank within", f"{head}.{body} .{sig}", PAYLOAD_64, stricter="RFC 7515 2: no white space")
refused("header is no JSON", raw("{", claims(), keys["rsa"]), HEADER_JSON)
refused("header is a list", raw("[]", claims(), keys["rsa"]), HEADER_JSON)
refused("payload is no JSON", raw({"alg": "RS256"}, "{", keys["rsa"]), PAYLOAD_JSON)
refused("payload is a text", raw({"alg": "RS256"}, '"x"', keys["rsa"]), PAYLOAD_JSON)
refused("payload is no UTF-8", raw({"alg": "RS256"}, b'{"iss":"\xff"}', keys["rsa"]), PAYLOAD_JSON)
refused("data after the payload", raw({"alg": "RS256"}, json.dumps(claims()) + "{}", keys["rsa"]), PAYLOAD_JSON)
refused("a claim twice", raw({"alg": "RS256"}, json.dumps(claims())[:-1] + ',"sub":"mallory"}', keys["rsa"]), PAYLOAD_JSON)
refused("a header twice", raw('{"alg":"RS256","alg":"RS256"}', claims(), keys["rsa"]), HEADER_JSON)
refused("deep JSON", raw({"alg": "RS256"}, '{"a":' * 5000 + "1" + "}" * 5000, keys["rsa"]), PAYLOAD_JSON)
refused("too deep JSON", raw({"alg": "RS256"}, '{"a":' * 101 + "1" + "}" * 101, keys["rsa"]), PAYLOAD_JSON)
for name in ("iss", "sub", "jti"):
    refused(f"{name} no text", token(keys["rsa"], "RS256", claims(**{name: 1}), kid="rsa"),
            f"Jwt payload [{name}] field is not a string")
for name in ("iat", "nbf", "exp"):
    refused(f"{name} no number", token(keys["rsa"], "RS256", claims(**{name: "1"}), kid="rsa"),
            f"Jwt payload [{name}] field is not an integer")
    refused(f"{name} negative", token(keys["rsa"], "RS256", claims(**{name: -1}), kid="rsa"),
            f"Jwt payload [{name}] field is not a positive 64 bit integer")
    refused(f"{name} too large", token(keys["rsa"], "RS256", claims(**{name: 2**65}), kid="rsa"),
            f"Jwt payload [{name}] field is not a positive 64 bit integer")
for aud in (1, [1], ["a", None], {}):
    refused(f"aud {aud}", token(keys["rsa"], "RS256", claims(aud=aud), kid="rsa"),
            "Jwt payload [aud] field is not a string or string list")
accepted("no expiry", token(keys["rsa"], "RS256", claims(exp=...), kid="rsa"))
accepted("expiry with a fraction", token(keys["rsa"], "RS256", claims(exp=FUTURE + 0.5), kid="rsa"))
accepted("no subject", token(keys["rsa"], "RS256", claims(sub=...), kid="rsa"))
refused("expiry zero", token(keys["rsa"], "RS256", claims(exp=0), kid="rsa"), EXPIRED,
        stricter="1970 is over; to Envoy, zero is never")

# Locations.
case("lower-case bearer is no token", "one", headers=[["authorization", f"bearer {good}"]])
case("Basic is no token", "one", headers=[["authorization", "Basic YTpi"]])
case("Bearer without a token is none", "one", headers=[["authorization", "Bearer"]])
case("blanks before the token", "one", headers=[["authorization", f"Bearer   {good}"]])
case("the prefix anywhere", "one", headers=[["authorization", f"Basic Bearer {good}"]])
case("quoted token", "one", 401, SIGNATURE_64, [["authorization", f'Bearer "{good}"']])
case("default parameter", "one", path=f"/a?access_token={good}&x=1", upstream="/a?x=1")
case("default parameter alone", "one", path=f"/a?access_token={good}", upstream="/a")
case("default parameter kept", "kept", path=f"/a?access_token={good}&x=1", upstream=f"/a?access_token={good}&x=1")
accepted("header kept", good, "kept", forwarded={"authorization": f"Bearer {good}"})
case("bad default parameter", "one", 401, FORM, path="/a?access_token=x")
case("good header and bad parameter", "one", 401, FORM, bearer(good), path="/a?access_token=x")
case("bad header and good parameter", "one", 401, FORM, bearer("x"), path=f"/a?access_token={good}")
case("good header and good parameter", "one", headers=bearer(good), path=f"/a?access_token={good}", upstream="/a",
     absent=["authorization"])
case("two values of authorization, both good", "one", 401, FORM, bearer(good) + bearer(good))
case("two values of authorization, one bad", "one", 401, SIGNATURE_64, bearer(good) + bearer("x"))
case("two values of authorization, no token in the first", "one", 401, SIGNATURE_64,
     [["authorization", "Basic YTpi"]] + bearer(good) + bearer("x"))
case("two values of authorization, a token in the second", "one", headers=[["authorization", "Basic YTpi"]] + bearer(good),
     absent=["authorization"])
case("defaults are off once a location is named", "header", headers=bearer("x"), path="/a?access_token=x",
     forwarded={"authorization": "Bearer x"})
case("own header", "header", headers=[["x-token", f"Token {good}"]], absent=["x-token"])
case("own header without prefix", "header", headers=[["x-token", good]], forwarded={"x-token": good})
case("own header, bad", "header", 401, FORM, [["x-token", "Token x"]])
case("own header, bare", "bare", headers=[["x-token", good]], absent=["x-token"])
case("own header, bare and empty", "bare", 401, FORM, [["x-token", ""]])
case("own header, two good values", "bare", headers=[["x-token", good], ["x-token", good]], absent=["x-token"])
case("own header, a good and a bad value", "bare", 401, FORM, [["x-token", good], ["x-token", "x"]])
case("own header, a bad and a good value", "bare", 401, FORM, [["x-token", "x"], ["x-token", good]])
case("two headers, first", "two-headers", headers=[["x-a", good]], absent=["x-a"])
case("two headers, second", "two-headers", headers=[["x-b", f"B {good}"]], absent=["x-b"])
case("two headers, one bad", "two-headers", 401, FORM, [["x-a", good], ["x-b", "B x"]])
case("own parameter", "param", path=f"/a?x=1&tok={good}&y=%41", upstream="/a?x=1&y=%41")
case("own parameter, encoded", "param", path=f"/a?%74ok={good.replace('.', '%2E')}", upstream="/a")
case("own parameter, empty", "param", 401, FORM, path="/a?tok=")
case("own parameter, no value", "param", 401, FORM, path="/a?tok")
case("own parameter, with case", "param", path="/a?TOK=x", upstream="/a?TOK=x")
case("own parameter twice, the first counts", "param", path=f"/a?tok={good}&tok=x", upstream="/a")
case("own parameter twice, the first is bad", "param", 401, FORM, path=f"/a?tok=x&tok={good}")
case("own parameter kept", "param-kept", path=f"/a?tok={good}", upstream=f"/a?tok={good}")
case("plus is no blank", "param", 401, SIGNATURE_64, path=f"/a?tok={good}%2B")
case("own cookie", "cookie", headers=[["cookie", f"x=1; tok={good}; y=2"]],
     forwarded={"cookie": f"x=1; tok={good}; y=2"})
case("own cookie, quoted", "cookie", headers=[["cookie", f'tok="{good}"']])
case("own cookie, bad", "cookie", 401, FORM, [["cookie", "tok=x"]])
case("own cookie, empty", "cookie", 401, FORM, [["cookie", "tok="]])
case("own cookie, without value", "cookie", headers=[["cookie", "tok"]])
case("own cookie, first of two", "cookie", headers=[["cookie", f"tok={good}; tok=x"]])
case("own cookie, bad first of two", "cookie", 401, FORM, [["cookie", f"tok=x; tok={good}"]])
case("own cookie, in a second header", "cookie", headers=[["cookie", "x=1"], ["cookie", f"tok={good}"]])
case("own cookie, with case", "cookie", headers=[["cookie", "TOK=x"]])
case("own cookie, kept", "cookie-kept", headers=[["cookie", f"tok={good}"]], forwarded={"cookie": f"tok={good}"})
case("everywhere, all good", "everywhere", headers=[["x-token", good], ["cookie", f"tok={good}"]],
     path=f"/a?tok={good}", upstream="/a", absent=["x-token"])
case("everywhere, bad cookie", "everywhere", 401, FORM, [["x-token", good], ["cookie", "tok=x"]], path=f"/a?tok={good}")
case("everywhere, bad header", "everywhere", 401, FORM, [["x-token", "x"], ["cookie", f"tok={good}"]])

# Outputs.
FORGED = [[output["header"].lower(), "forged"] for output in outputs["outputClaimToHeaders"]] + [["x-payload", "forged"]]
NAMES = [name for name, _ in FORGED]
telling = claims(level=7, admin=True, half=1.5, minus=-3, big=9007199254740991, groups=["a", "b"],
                 address={"city": "Basel"}, empty="", null=None)
telling["a.b"] = "dotted"
text = token(keys["rsa"], "RS256", telling, kid="rsa")
told = {"x-payload": text.split(".")[1], "x-sub": "alice", "x-level": "7", "x-admin": "true", "x-half": "1.500000",
        "x-minus": "-3.000000", "x-big": "9007199254740991", "x-city": "Basel",
        "x-groups": base64.b64encode(b'["a","b"]').decode(),
        "x-address": base64.b64encode(b'{"city":"Basel"}').decode()}
SILENT = ["x-none", "x-empty", "x-null", "x-dotted"]
accepted("claims as headers", text, "outputs", forwarded=told, absent=SILENT)
case("forged headers beside a token are replaced", "outputs", headers=bearer(text) + FORGED, forwarded=told, absent=SILENT)
case("forged headers without a token are removed", "outputs", headers=FORGED, absent=NAMES)
nasty = token(keys["rsa"], "RS256", claims(sub="a\r\nx-admin: true"), kid="rsa")
accepted("a claim with a line break is no header", nasty, "outputs", absent=["x-admin", "x-sub"],
         stricter="a claim must not become a second header")
accepted("a claim beyond ASCII", token(keys["rsa"], "RS256", claims(sub="Zoë"), kid="rsa"), "outputs",
         forwarded={"x-sub": "Zoë"})
case("claims of two tokens", "everywhere", headers=[["x-token", good], ["cookie", f"tok={good}"]])

# Several rules.
accepted("two rules, no token of the second", good, "two")
accepted("two rules, token of the second", other, "two")
case("two rules, no token", "two")
refused("two rules, token of nobody", token(keys["rsa"], "RS256", claims(iss="https://evil.example"), kid="rsa"), ISS, "two")
refused("two rules, expired token of the first", expired, EXPIRED, "two")
refused("two rules, forged token of the second", token(keys["stranger"], "RS256", claims(iss=OTHER)), FAILS, "two")
refused("two rules, malformed", "x", FORM, "two")
case("apart, first", "two-apart", headers=[["x-one", good]], absent=["x-one", "x-payload-two"],
     forwarded={"x-payload-one": good.split(".")[1]})
case("apart, second", "two-apart", headers=[["x-two", other]], absent=["x-two", "x-payload-one"],
     forwarded={"x-payload-two": other.split(".")[1]})
case("apart, first good, second bad: one suffices", "two-apart", headers=[["x-one", good], ["x-two", "x"]],
     absent=["x-one"], forwarded={"x-two": "x"})
case("apart, first bad, second good: one suffices", "two-apart", headers=[["x-one", "x"], ["x-two", other]],
     absent=["x-two"], forwarded={"x-one": "x"})
case("apart, only the first and bad", "two-apart", 401, FORM, [["x-one", "x"]])
case("apart, both bad: the first is told of", "two-apart", 401, EXPIRED, [["x-one", expired], ["x-two", "x"]])
case("apart, wrong issuer and bad: the bad is told of", "two-apart", 401, FORM, [["x-one", other], ["x-two", "x"]])
case("apart, bad and wrong issuer: the bad is told of", "two-apart", 401, FORM, [["x-one", "x"], ["x-two", good]])
case("apart, forged output of the other rule is removed", "two-apart",
     headers=[["x-one", good], ["x-payload-two", "forged"]], absent=["x-payload-two"],
     forwarded={"x-payload-one": good.split(".")[1]})
case("forged headers with a preflight are removed", "outputs", method="OPTIONS", absent=NAMES,
     headers=FORGED + [["origin", "https://a.example"], ["access-control-request-method", "GET"]])
refused("one issuer twice, no rule fits", token(keys["es256"], "ES256", kid="es256"), AUD, "two-same", 403)
accepted("one issuer twice, the second fits", good, "two-same")
accepted("any issuer", token(keys["rsa"], "RS256", claims(iss="https://whoever.example"), kid="rsa"), "any-issuer")
accepted("any issuer, none", token(keys["rsa"], "RS256", claims(iss=...), kid="rsa"), "any-issuer")

json.dump({"made_by": f"PyJWT {jwt.__version__}, jwcrypto 1.6.1", "sets": sets, "configs": configs, "cases": cases},
          sys.stdout, indent=1, sort_keys=True)
print()
