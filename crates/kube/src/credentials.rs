//! Secrets and ConfigMaps that DestinationRules name: each watched by its name while a rule names it, and no others. So the
//! control plane holds no secret that no proxy is to have.

use std::collections::BTreeMap;
use std::fmt::Debug;

use futures::stream::{Stream, StreamExt, select};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client, Resource};
use maille_control::world::{CredentialData, CredentialSource, Event, Material};
use maille_core::NamespacedName;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use crate::watch::{Retry, config};

/// Behind the name of a Secret: the one with its authorities (istio pilot/pkg/security/model, `SdsCaSuffix`).
const CA_SUFFIX: &str = "-cacert";

/// What an object holds.
type Data = BTreeMap<String, Vec<u8>>;

/// Watches what is named, as long as it is named.
pub(crate) async fn follow(
    client: Client,
    mut named: watch::Receiver<BTreeMap<CredentialSource, u64>>,
    events: mpsc::Sender<Event>,
) {
    let mut running = BTreeMap::<(CredentialSource, u64), AbortHandle>::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = named.borrow_and_update().clone();
        running.retain(|(source, since), task| {
            let stays = wanted.get(source) == Some(since) && !task.is_finished();
            if !stays {
                task.abort();
            }
            stays
        });
        for (source, since) in wanted {
            running
                .entry((source.clone(), since))
                .or_insert_with(|| tasks.spawn(follow_one(client.clone(), source, events.clone())));
        }
        tokio::select! {
            changed = named.changed() => if changed.is_err() { return },
            // A task that ended although its source is named is begun anew.
            Some(_) = tasks.join_next() => if events.is_closed() { return },
        }
    }
}

/// News of one of a source's objects: `None` if there is no such object.
type News = Result<Option<Data>, String>;

async fn follow_one(client: Client, source: CredentialSource, events: mpsc::Sender<Event>) {
    let NamespacedName { namespace, name } = source.name().clone();
    match &source {
        CredentialSource::Secret(_) => {
            let own = objects::<Secret>(&client, &namespace, &name, |secret| {
                secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
            });
            let authorities =
                objects::<Secret>(&client, &namespace, &format!("{name}{CA_SUFFIX}"), |secret| {
                    secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()
                });
            let news = select(own.map(|news| (false, news)), authorities.map(|news| (true, news)));
            tell(&source, news, 2, events).await;
        }
        CredentialSource::ConfigMap(_) => {
            let own = objects::<ConfigMap>(&client, &namespace, &name, |map| {
                let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
                text.chain(map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0))).collect()
            });
            tell(&source, own.map(|news| (false, news)), 1, events).await;
        }
    }
}

/// What becomes of one object by its name.
fn objects<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    data: fn(K) -> Data,
) -> impl Stream<Item = News> + use<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let of_name = config().fields(&format!("metadata.name={name}"));
    let (place, mut listed) = (format!("{} {namespace}/{name}", K::kind(&())), None);
    // An API server that does not know the selector must not make another object of this one.
    let name = name.to_owned();
    watcher(api, of_name).backoff(Retry::default()).filter_map(move |seen| {
        let is_it = |object: &K| object.meta().name.as_deref() == Some(name.as_str());
        let news = match seen {
            Err(error) => {
                let error = match error {
                    watcher::Error::InitialListFailed(cause) | watcher::Error::WatchStartFailed(cause) => {
                        crate::brief(&cause)
                    }
                    other => other.to_string(),
                };
                Some(Err(format!("{place} cannot be read: {error}")))
            }
            Ok(watcher::Event::Init) => {
                listed = None;
                None
            }
            Ok(watcher::Event::InitApply(object)) if is_it(&object) => {
                listed = Some(data(object));
                None
            }
            Ok(watcher::Event::InitDone) => Some(Ok(listed.take())),
            Ok(watcher::Event::Apply(object)) if is_it(&object) => Some(Ok(Some(data(object)))),
            Ok(watcher::Event::Delete(object)) if is_it(&object) => Some(Ok(None)),
            Ok(_) => None,
        };
        std::future::ready(news)
    })
}

/// Tells what comes out of a source's objects each time that it changes. `of` is how many objects there can be.
async fn tell(
    source: &CredentialSource,
    news: impl Stream<Item = (bool, News)>,
    of: usize,
    events: mpsc::Sender<Event>,
) {
    let mut news = std::pin::pin!(news);
    let mut known = BTreeMap::<bool, Option<Data>>::new();
    let mut told = None;
    while let Some((authorities, news)) = news.next().await {
        let outcome = match news {
            Ok(data) => {
                known.insert(authorities, data);
                if known.len() < of {
                    continue;
                }
                let get = |authorities: bool| known.get(&authorities).and_then(Option::as_ref);
                material(source, get(false), get(true))
            }
            // What was read stays in force.
            Err(error) => {
                tracing::warn!(%source, error, "watch failed; trying again");
                if known.len() == of {
                    continue;
                }
                Err(error)
            }
        };
        let data = match outcome {
            Ok(material) => CredentialData::Known(material.into()),
            Err(problem) => CredentialData::Failed(problem),
        };
        if told.as_ref() == Some(&data) {
            continue;
        }
        if let CredentialData::Failed(problem) = &data {
            tracing::warn!(%source, problem, "credential of a DestinationRule cannot be used; its ports are refused");
        }
        told = Some(data.clone());
        if events.send(Event::Credential(source.clone(), data)).await.is_err() {
            return;
        }
    }
}

/// What a source's objects come to, by Istio's names (pilot/pkg/credentials/kube, `ExtractCertInfo`, `ExtractRoot`).
fn material(
    source: &CredentialSource,
    own: Option<&Data>,
    authorities: Option<&Data>,
) -> Result<Material, String> {
    let kind = match source {
        CredentialSource::Secret(_) => "Secret",
        CredentialSource::ConfigMap(_) => "ConfigMap",
    };
    let name = source.name();
    let get = |data: Option<&Data>, key: &str| -> Vec<u8> {
        data.and_then(|data| data.get(key)).cloned().unwrap_or_default()
    };
    let pair = |certificate, key| {
        let pair = (get(own, certificate), get(own, key));
        let is_there =
            matches!(source, CredentialSource::Secret(_)) && !pair.0.is_empty() && !pair.1.is_empty();
        is_there.then_some(pair)
    };
    let (certificate_chain, private_key) =
        pair("cert", "key").or_else(|| pair("tls.crt", "tls.key")).unwrap_or_default();
    let roots = authorities.or(own);
    let authority = |certificate, crl| {
        let found = get(roots, certificate);
        (!found.is_empty()).then(|| (found, get(roots, crl)))
    };
    let (ca_certificates, crl) =
        authority("cacert", "crl").or_else(|| authority("ca.crt", "ca.crl")).unwrap_or_default();
    if own.is_none() && authorities.is_none() {
        return Err(format!("there is no {kind} {name}"));
    }
    if certificate_chain.is_empty() && ca_certificates.is_empty() {
        let found: Vec<&str> =
            own.or(authorities).into_iter().flat_map(|d| d.keys().map(String::as_str)).collect();
        let wanted = match source {
            CredentialSource::Secret(_) => "cert and key, tls.crt and tls.key, cacert or ca.crt",
            CredentialSource::ConfigMap(_) => "cacert or ca.crt",
        };
        return Err(format!("{kind} {name} has none of {wanted}; it has: {}", found.join(", ")));
    }
    for (pem, marker, what) in [
        (&certificate_chain, "CERTIFICATE-----", "certificate"),
        (&private_key, "PRIVATE KEY-----", "private key"),
        (&ca_certificates, "CERTIFICATE-----", "authority's certificate"),
        (&crl, "X509 CRL-----", "revocation list"),
    ] {
        let is_pem =
            std::str::from_utf8(pem).is_ok_and(|text| text.contains("-----BEGIN ") && text.contains(marker));
        if !pem.is_empty() && !is_pem {
            return Err(format!("the {what} in {kind} {name} is not PEM"));
        }
    }
    Ok(Material { certificate_chain, private_key, ca_certificates, crl })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret() -> CredentialSource {
        CredentialSource::parse("shop/api").expect("a name")
    }

    fn pem(kind: &str, id: &str) -> String {
        format!("-----BEGIN {kind}-----\n{id}\n-----END {kind}-----\n")
    }

    fn data(pairs: &[(&str, &str)]) -> Data {
        pairs
            .iter()
            .map(|(key, id)| {
                let kind = match *key {
                    "key" | "tls.key" => "PRIVATE KEY",
                    "crl" | "ca.crl" => "X509 CRL",
                    _ => "CERTIFICATE",
                };
                ((*key).to_owned(), pem(kind, id).into_bytes())
            })
            .collect()
    }

    /// Certificate, key, authorities, revocations, each by the mark in it.
    fn read(
        own: Option<&[(&str, &str)]>,
        authorities: Option<&[(&str, &str)]>,
    ) -> Result<[String; 4], String> {
        let (own, authorities) = (own.map(data), authorities.map(data));
        let found = material(&secret(), own.as_ref(), authorities.as_ref())?;
        let mark = |pem: Vec<u8>| String::from_utf8_lossy(&pem).lines().nth(1).unwrap_or_default().to_owned();
        Ok([found.certificate_chain, found.private_key, found.ca_certificates, found.crl].map(mark))
    }

    #[test]
    fn keys_have_istios_names_and_authorities_may_be_beside() {
        let generic: &[_] = &[("cert", "c"), ("key", "k"), ("cacert", "a"), ("crl", "r")];
        let tls: &[_] = &[("tls.crt", "C"), ("tls.key", "K"), ("ca.crt", "A"), ("ca.crl", "R")];
        let both = [generic, tls].concat();
        for (own, beside, expected) in [
            (Some(generic), None, ["c", "k", "a", "r"]),
            (Some(tls), None, ["C", "K", "A", "R"]),
            (Some(&both[..]), None, ["c", "k", "a", "r"]),
            (Some(&tls[..2]), None, ["C", "K", "", ""]),
            (Some(generic), Some(&[("ca.crt", "B")][..]), ["c", "k", "B", ""]),
            (Some(&generic[..2]), Some(&[("cacert", "B")][..]), ["c", "k", "B", ""]),
            (None, Some(&[("cacert", "B")][..]), ["", "", "B", ""]),
            (Some(&generic[1..3]), None, ["", "", "a", ""]),
        ] {
            assert_eq!(read(own, beside), Ok(expected.map(str::to_owned)), "{own:?} {beside:?}");
        }
        let wrong = |own, part: &str| {
            let problem = read(own, None).expect_err("a problem");
            assert!(problem.contains(part) && problem.contains("shop/api"), "{problem}");
        };
        wrong(None, "there is no Secret");
        wrong(Some(&[("cert", "c")][..]), "it has: cert");
        wrong(Some(&[][..]), "none of cert and key");
        let map = CredentialSource::parse("configmap://shop/api").expect("a name");
        let found = material(&map, Some(&data(&both)), None).expect("authorities");
        assert!(
            found.private_key.is_empty() && !found.ca_certificates.is_empty(),
            "no keys from a ConfigMap"
        );
    }

    #[test]
    fn what_is_not_pem_is_said_without_being_shown() {
        let mut own = data(&[("cert", "c"), ("key", "k")]);
        own.insert("key".to_owned(), b"hush".to_vec());
        let problem = material(&secret(), Some(&own), None).expect_err("a problem");
        assert_eq!(problem, "the private key in Secret shop/api is not PEM");
    }
}
