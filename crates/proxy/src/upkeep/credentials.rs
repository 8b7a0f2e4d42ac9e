//! Keys and certificates that come from the control plane: the Secrets that DestinationRules name (`credentialName`,
//! reference mtls 2.2). Asked for while a rule that holds for this workload names them.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use maille_proto::facts as wire;
use maille_tls::{ClientCertificate, Origin, ServerRoots};
use parking_lot::Mutex;
use tracing::{error, info};
use zeroize::Zeroizing;

use crate::snapshot::{CredentialUse, Material, OrderFiles, Reading, RootsFrom};

/// Credentials held at a time.
const MAX_CREDENTIALS: usize = 256;

/// Asks the control plane for a credential, or says that it is not needed any more.
pub(crate) type Ask = Box<dyn Fn(&str, bool) + Send + Sync>;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Credentials {
    held: Mutex<HashMap<Arc<str>, Held>>,
    ask: OnceLock<Ask>,
}

#[derive(Default)]
struct Held {
    /// What the control plane said last.
    latest: Option<Latest>,
    uses: HashMap<OrderFiles, Weak<Material>>,
}

/// One content of a credential; or why there is none.
type Latest = Result<Arc<Content>, Arc<str>>;

struct Content {
    chain: String,
    key: Zeroizing<String>,
    roots: String,
    crl: String,
}

impl Credentials {
    /// How the control plane is asked. To be called once, before anything is used.
    pub(crate) fn asks(&self, ask: Ask) {
        // A second one would be a fault of ours, and change nothing.
        let _ = self.ask.set(ask);
    }

    /// What a credential gives for one use.
    pub(super) fn material(&self, used: &CredentialUse, files: &OrderFiles) -> Arc<Material> {
        let mut all = self.held.lock();
        let is_new = !all.contains_key(&used.name);
        if is_new && all.len() >= MAX_CREDENTIALS {
            let material = Arc::new(Material::default());
            let why = format!("more than {MAX_CREDENTIALS} credentials are in use by this workload");
            material.replace(Reading { origin: None, problem: Some(why.into()) }, false);
            return material;
        }
        let held = all.entry(used.name.clone()).or_default();
        if let Some(material) = held.uses.get(files).and_then(Weak::upgrade) {
            return material;
        }
        let material = Arc::new(Material::default());
        held.uses.insert(files.clone(), Arc::downgrade(&material));
        match &held.latest {
            Some(latest) => put(&used.name, files, latest, &material),
            // Where nobody can be asked, waiting for an answer would be in vain.
            None if self.ask.get().is_none() => {
                let why = "credentials come from the control plane, and there is none here";
                material.replace(Reading { origin: None, problem: Some(why.into()) }, false);
            }
            None => {}
        }
        drop(all);
        if is_new && let Some(ask) = self.ask.get() {
            ask(&used.name, true);
        }
        material
    }

    /// The control plane's answer, or a change of it. Kept although nobody uses it yet: after a restart it comes before the
    /// rules that name it.
    pub(crate) fn update(&self, message: &wire::Credential) -> Result<(), String> {
        let text = |field: &str, bytes: &[u8]| {
            String::from_utf8(bytes.to_vec()).map_err(|_| format!("{field} is no PEM text"))
        };
        let latest = if message.problem.is_empty() {
            Ok(Arc::new(Content {
                chain: text("certificate_chain", &message.certificate_chain)?,
                key: Zeroizing::new(text("private_key", &message.private_key)?),
                roots: text("ca_certificates", &message.ca_certificates)?,
                crl: text("crl", &message.crl)?,
            }))
        } else {
            Err(message.problem.as_str().into())
        };
        let is_new = self.set(&message.name, latest)?;
        if is_new && let Some(ask) = self.ask.get() {
            ask(&message.name, true);
        }
        Ok(())
    }

    /// The control plane has no such credential for this workload, or not any more.
    pub(crate) fn remove(&self, name: &str) {
        let why =
            format!("the control plane has no credential {name} for this workload; is the Secret gone?");
        // An unknown one that there is no room for is no loss.
        let _ = self.set(name, Err(why.into()));
    }

    fn set(&self, name: &str, latest: Latest) -> Result<bool, String> {
        let mut all = self.held.lock();
        let is_new = !all.contains_key(name);
        if is_new && all.len() >= MAX_CREDENTIALS {
            return Err(format!("more than {MAX_CREDENTIALS} credentials"));
        }
        let held = all.entry(name.into()).or_default();
        held.uses.retain(|_, material| material.strong_count() > 0);
        for (files, material) in &held.uses {
            if let Some(material) = material.upgrade() {
                put(name, files, &latest, &material);
            }
        }
        held.latest = Some(latest);
        Ok(is_new)
    }

    /// Gives up what no rule names any more. To be called now and then.
    pub(crate) fn sweep(&self) {
        let mut gone = Vec::new();
        self.held.lock().retain(|name, held| {
            held.uses.retain(|_, material| material.strong_count() > 0);
            let is_used = !held.uses.is_empty();
            if !is_used {
                gone.push(name.clone());
            }
            is_used
        });
        if let Some(ask) = self.ask.get() {
            gone.iter().for_each(|name| ask(name, false));
        }
    }

    /// Whether a credential is held.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.held.lock().contains_key(name)
    }
}

/// Puts a content in force for one use. One that is not good does not take the place of one that was; that a credential
/// is gone, or may not be used, takes it away.
fn put(name: &str, files: &OrderFiles, latest: &Latest, material: &Material) {
    let before = material.current();
    let outcome = match latest {
        Ok(content) => read(name, files, content),
        Err(problem) => {
            error!(%problem, "a credential of a DestinationRule cannot be used; its hosts are refused");
            material.replace(Reading { origin: None, problem: Some(problem.clone()) }, true);
            return;
        }
    };
    match outcome {
        Ok(origin) => {
            let is_other = before.origin.is_some() || before.problem.is_some();
            if is_other {
                info!(credential = name, "a credential of a DestinationRule has changed and is in force");
            }
            material.replace(Reading { origin: Some(Arc::new(origin)), problem: None }, is_other);
        }
        Err(problem) => {
            error!(%problem, "a credential of a DestinationRule is not good");
            let origin = before.origin.clone();
            material.replace(Reading { origin, problem: Some(problem.into()) }, false);
        }
    }
}

/// The error names the credential and what is wrong with it, and nothing of its content.
fn read(name: &str, files: &OrderFiles, content: &Content) -> Result<Origin, String> {
    let shows_certificate = files.credential.as_ref().is_some_and(|used| used.shows_certificate);
    let certificate = match shows_certificate {
        false => None,
        true if content.chain.is_empty() || content.key.is_empty() => {
            return Err(format!(
                "{name} has no certificate with its key (tls.crt, tls.key), and mode MUTUAL shows one"
            ));
        }
        true => Some(
            ClientCertificate::from_pem(&content.chain, &content.key)
                .map_err(|e| format!("the certificate or the key of {name} cannot be used: {e}"))?,
        ),
    };
    let roots = match &files.roots {
        RootsFrom::Credential if content.roots.is_empty() => {
            return Err(format!(
                "{name} has no roots to verify servers by (ca.crt, or a Secret '<name>-cacert')"
            ));
        }
        RootsFrom::Credential => {
            let roots = ServerRoots::from_pem(&content.roots, name)
                .map_err(|e| format!("the roots of {name} cannot be used: {e}"))?;
            Some(match content.crl.as_str() {
                "" => roots,
                crl => roots
                    .with_revocation_lists(crl)
                    .map_err(|e| format!("the revocation lists of {name} cannot be used: {e}"))?,
            })
        }
        RootsFrom::Nowhere => None,
        RootsFrom::System | RootsFrom::File(_) => {
            return Err(format!("{name}: credentialName and caCertificates exclude each other"));
        }
    };
    Ok(Origin::new(certificate, roots))
}

#[cfg(test)]
mod tests;
