//! Who owns whom.

use kube::{Resource, ResourceExt};
use maille_config::k8s::api::core::v1::ObjectReference;
use maille_config::k8s::meta::OwnerReference;

/// The controlling owner of an object, if it is of this kind.
pub(super) fn controller<'a, K: Resource>(object: &'a K, kind: &str) -> Option<&'a OwnerReference> {
    object.owner_references().iter().find(|owner| owner.controller == Some(true) && owner.kind == kind)
}

/// Whether `object` is controlled by the owner with this uid.
pub(super) fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    object.owner_references().iter().any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

/// The reference that makes `owner` the controller of what carries it.
pub(super) fn reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.name_any(),
        uid: owner.uid().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference by which events name an object.
pub(super) fn object_reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: Some(object.name_any()),
        namespace: object.namespace(),
        uid: object.uid(),
        ..ObjectReference::default()
    }
}
