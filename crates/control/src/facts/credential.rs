use maille_config::destination_rule::Client;
use maille_proto::facts as wire;

use crate::world::{CredentialData, CredentialSource, World};

/// Keys and certificates of a Secret or ConfigMap, for a client that a rule lets have them; `None` for everybody else.
pub fn credential(world: &World, source: &CredentialSource, client: Client<'_>) -> Option<wire::Credential> {
    let name = source.to_string();
    Some(match world.credential_for(source, client)? {
        CredentialData::Known(material) => wire::Credential {
            name,
            certificate_chain: material.certificate_chain.clone().into(),
            private_key: material.private_key.clone().into(),
            ca_certificates: material.ca_certificates.clone().into(),
            crl: material.crl.clone().into(),
            problem: String::new(),
        },
        CredentialData::Awaited => {
            let problem = format!("{name} is not read yet");
            wire::Credential { name, problem, ..Default::default() }
        }
        CredentialData::Failed(problem) => {
            wire::Credential { name, problem: problem.clone(), ..Default::default() }
        }
    })
}
