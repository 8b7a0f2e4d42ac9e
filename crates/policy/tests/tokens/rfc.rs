//! The signatures that the RFCs print. Their payloads are no tokens but for those of RFC 7515 A.1 to A.3.

use maille_config::istio::JwtRule;
use maille_policy::authentication::TokenCache;
use serde_json::{Value, json};

use crate::support::{at, compile};

/// The claims of RFC 7515 A.1.1, line breaks and all; it ended in 2011.
const PAYLOAD: &str =
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
const THEN: u64 = 1_300_819_000;

fn rfc7515_a1() -> (Value, String) {
    let key = json!({
        "kty": "oct",
        "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
    });
    let header = "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9";
    (key, format!("{header}.{PAYLOAD}.dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"))
}

fn rfc7515_a2() -> (Value, String) {
    let key = json!({
        "kty": "RSA",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT\
              -SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS\
              -UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2e\
              thFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
        "e": "AQAB",
    });
    let signature = "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds\
                     9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZ\
                     RmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9F\
                     s98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw";
    (key, format!("eyJhbGciOiJSUzI1NiJ9.{PAYLOAD}.{signature}"))
}

fn rfc7515_a3() -> (Value, String) {
    let key = json!({
        "kty": "EC",
        "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
        "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    let signature = "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q";
    (key, format!("eyJhbGciOiJFUzI1NiJ9.{PAYLOAD}.{signature}"))
}

fn joe(keys: &[Value]) -> JwtRule {
    JwtRule { issuer: "joe".to_owned(), jwks: json!({ "keys": keys }).to_string(), ..JwtRule::default() }
}

fn answer(keys: &[Value], token: &str) -> Result<(), &'static str> {
    let headers = vec![("authorization".to_owned(), format!("Bearer {token}"))];
    let request = maille_policy::authentication::TokenRequest { method: "GET", path: "/", headers: &headers };
    let answer = compile(&[joe(keys)]).verify(&request, at(THEN), &mut TokenCache::new());
    answer.map(|_| ()).map_err(|refused| refused.reason)
}

#[test]
fn the_signatures_of_rfc_7515_are_good_by_their_own_keys_only() {
    let all = [rfc7515_a1(), rfc7515_a2(), rfc7515_a3()];
    for (index, (key, token)) in all.iter().enumerate() {
        assert_eq!(answer(std::slice::from_ref(key), token), Ok(()), "A.{}", index + 1);
        let others: Vec<Value> = all
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index)
            .map(|(_, (key, _))| key.clone())
            .collect();
        assert_eq!(answer(&others, token), Err("Jwt verification fails"), "A.{}", index + 1);
    }
}

/// RFC 7515 A.4 is ES512, A.5 is unsigned.
#[test]
fn what_rfc_7515_signs_as_no_token_or_not_at_all_is_refused() {
    let key = json!({
        "kty": "EC",
        "crv": "P-521",
        "x": "AekpBQ8ST8a8VcfVOTNl353vSrDCLLJXmPk06wTjxrrjcBpXp5EOnYG_NjFZ6OvLFV1jSfS9tsz4qUxcWceqwQGk",
        "y": "ADSmRA43Z1DSNx_RvcLI87cdL07l6jQyyBXMoxVg_l2Th-x3S1WDhjDly79ajL4Kkd0AZMaZmh9ubmf63e3kyMj2",
    });
    let signature = "AdwMgeerwtHoh-l192l60hp9wAHZFVJbLfD_UxMi70cwnZOYaRI1bKPWROc-mZZqwqT2SI-KGDKB34XO0aw_7XdtAG8GaSwFKdCAPZg\
                     oXD2YBJZCPEX3xKpRwcdOO8KpEHwJjyqOgzDO7iKvU8vcnwNrmxYbSW9ERBXukOXolLzeO_Jn";
    let token = format!("eyJhbGciOiJFUzUxMiJ9.UGF5bG9hZA.{signature}");
    assert_eq!(answer(&[key], &token), Err("Jwt payload is an invalid JSON"));
    let unsigned = format!("eyJhbGciOiJub25lIn0.{PAYLOAD}.");
    assert_eq!(
        answer(&[rfc7515_a1().0], &unsigned),
        Err("Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections")
    );
    assert_eq!(answer(&[rfc7515_a1().0], &format!("{unsigned}AA")), Err("Jwt header [alg] is not supported"));
}
