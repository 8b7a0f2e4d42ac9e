//! Certificates for the shop's service outside of the mesh, which has an authority of its own.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Secret;
use maille_config::yaml::Document;
use maille_core::TrustDomain;
use maille_pki::{Authority, certificates_from_pem, generate_key, leaf_facts};
use serde_json::{Value, json};

use crate::client::Api;

/// The name that the server proves.
const HOST: &str = "api.external-service.com";
/// Longer than a demo runs.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);

/// Where the Secrets are: the server's and the callers'.
const SERVER: (&str, &str) = ("external", "api-external-service-tls");
const CALLERS: (&str, &str) = ("production", "external-api-certs");

/// Whether these documents hold the service that needs the certificates.
pub(crate) fn are_needed(documents: &[Document]) -> bool {
    documents.iter().any(|document| {
        let object = &document.value;
        object["kind"] == "Deployment"
            && object["metadata"]["namespace"] == SERVER.0
            && object["metadata"]["name"] == "api-external-service"
    })
}

/// Makes sure of both Secrets, before anything mounts them. What an earlier start made stays while it is good for
/// another half of its life; else all is made anew. Nobody keeps the authority's key.
pub(crate) async fn ensure(api: &Api) -> Result<()> {
    let now = SystemTime::now();
    let (server, callers) = (find(api, SERVER).await?, find(api, CALLERS).await?);
    if let (Some(server), Some(callers)) = (&server, &callers)
        && are_good(server, callers, now)
    {
        return Ok(());
    }
    let (new_server, new_callers) = make(now).context("cannot make the external service's certificates")?;
    put(api, SERVER, new_server, server).await?;
    put(api, CALLERS, new_callers, callers).await
}

/// The data of both Secrets.
pub(crate) fn make(now: SystemTime) -> Result<(Value, Value)> {
    let authority = Authority::self_signed(&TrustDomain::parse("external-service.com")?, now, LIFETIME)?;
    let (server_key, caller_key) = (generate_key()?, generate_key()?);
    let server = authority.issue_server(&server_key.public_key()?, &[HOST], &[], LIFETIME, now)?;
    let caller =
        authority.issue_client(&caller_key.public_key()?, "shop", Some("production"), LIFETIME, now)?;
    Ok((
        json!({
            "tls.crt": server.chain_text(), "tls.key": server_key.to_pem().as_str(),
            "ca.crt": authority.roots_pem()
        }),
        json!({
            "cert.pem": caller.chain_text(), "key.pem": caller_key.to_pem().as_str(),
            "ca.pem": authority.roots_pem()
        }),
    ))
}

fn are_good(server: &Secret, callers: &Secret, now: SystemTime) -> bool {
    let entry = |secret: &Secret, key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?.0.clone();
        String::from_utf8(bytes).ok()
    };
    let lasts = |secret: &Secret, key: &str| {
        let text = entry(secret, key)?;
        let leaf = certificates_from_pem("certificate", &text).ok()?.into_iter().next()?;
        let left = leaf_facts(&leaf).ok()?.not_after.duration_since(now).ok()?;
        (left > LIFETIME / 2).then_some(())
    };
    let authority = entry(server, "ca.crt");
    authority.is_some()
        && authority == entry(callers, "ca.pem")
        && entry(server, "tls.key").is_some()
        && entry(callers, "key.pem").is_some()
        && lasts(server, "tls.crt").is_some()
        && lasts(callers, "cert.pem").is_some()
}

async fn find(api: &Api, (namespace, name): (&str, &str)) -> Result<Option<Secret>> {
    match api.get(&format!("/api/v1/namespaces/{namespace}/secrets/{name}")).await {
        Ok(secret) => Ok(Some(serde_json::from_value(secret)?)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

async fn put(api: &Api, (namespace, name): (&str, &str), data: Value, old: Option<Secret>) -> Result<()> {
    let secrets = format!("/api/v1/namespaces/{namespace}/secrets");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": name},
        "type": "Opaque", "stringData": data
    });
    if old.is_some() {
        // Only the data: whoever labelled it meant that.
        api.merge_patch(&format!("{secrets}/{name}"), &json!({"stringData": data})).await?;
        return Ok(());
    }
    match api.create(&secrets, &secret).await {
        // Its namespace is among what is applied next.
        Err(error) if error.is_not_found() => {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            api.create("/api/v1/namespaces", &namespace).await?;
            api.create(&secrets, &secret).await?;
        }
        other => drop(other?),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::ByteString;

    fn secret(data: &Value) -> Secret {
        let entries = data.as_object().expect("an object").iter();
        let text = |value: &Value| ByteString(value.as_str().expect("text").as_bytes().to_vec());
        Secret {
            data: Some(entries.map(|(key, value)| (key.clone(), text(value))).collect()),
            ..Secret::default()
        }
    }

    #[test]
    fn certificates_are_kept_for_half_of_their_life_and_only_as_a_pair() {
        let now = SystemTime::now();
        let (server, callers) = make(now).expect("certificates");
        assert!(are_good(&secret(&server), &secret(&callers), now));
        assert!(!are_good(&secret(&server), &secret(&callers), now + LIFETIME / 2 + LIFETIME / 10));
        let (_, of_another) = make(now).expect("certificates");
        assert!(!are_good(&secret(&server), &secret(&of_another), now), "another authority");
        let mut without_key = callers.clone();
        without_key.as_object_mut().expect("an object").remove("key.pem");
        assert!(!are_good(&secret(&server), &secret(&without_key), now));
    }
}
