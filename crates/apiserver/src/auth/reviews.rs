//! Questions that are answered at once: tokens, reviews of tokens, and what one may do.

use serde_json::{Map, Value, json};

use super::authz::{self, Attributes};
use super::tokens::{self, Bound, Claims, ISSUER, MAX_SECONDS, MIN_SECONDS, Reference};
use crate::api::{Api, Caller};
use crate::json;
use crate::request::Target;
use crate::status::{ApiError, ApiResult, Cause};

/// Answers a `POST` to one of the review resources.
pub(crate) fn answer(api: &Api, caller: &Caller, target: &Target, body: Value) -> ApiResult<Value> {
    let mut review = body;
    let status = match target.resource.plural {
        "tokenreviews" => token_review(api, &review)?,
        "selfsubjectreviews" => json!({ "userInfo": tokens::user_info(caller) }),
        "selfsubjectaccessreviews" => access(caller, &review)?,
        "subjectaccessreviews" => {
            let list = json::items(&review, &["spec", "groups"]).iter().filter_map(Value::as_str);
            let user = Caller {
                name: json::text(&review, &["spec", "user"]).to_owned(),
                uid: json::text(&review, &["spec", "uid"]).to_owned(),
                groups: list.map(str::to_owned).collect(),
                extra: Vec::new(),
            };
            access(&user, &review)?
        }
        "selfsubjectrulesreviews" => rules(caller),
        _ => return Err(ApiError::path_not_found()),
    };
    let map = json::map_of(&mut review);
    json::default_to(map, "metadata", json!({ "creationTimestamp": null }));
    map.insert("status".into(), status);
    Ok(review)
}

/// TokenReview: an invalid token is an answer, not an error.
fn token_review(api: &Api, review: &Value) -> ApiResult<Value> {
    let token = json::text(review, &["spec", "token"]);
    if token.is_empty() {
        return Err(ApiError::bad_request("token is required for TokenReview in authentication"));
    }
    let mut audiences: Vec<String> = json::items(review, &["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let found = api.tokens.verify(token, &audiences).and_then(|(claims, common)| {
        let caller = api.store.read(|state| tokens::caller(state, &claims))?;
        Ok((caller, common))
    });
    Ok(match found {
        Ok((caller, common)) => {
            json!({ "authenticated": true, "user": tokens::user_info(&caller), "audiences": common })
        }
        Err(why) => json!({ "error": why }),
    })
}

fn access(caller: &Caller, review: &Value) -> ApiResult<Value> {
    let text = |key: &str| json::text(review, &["spec", "resourceAttributes", key]);
    let path = json::text(review, &["spec", "nonResourceAttributes", "path"]);
    if json::at(review, &["spec", "resourceAttributes"]).is_none() {
        if path.is_empty() {
            return Err(ApiError::bad_request(
                "spec.resourceAttributes: Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
            ));
        }
        // Discovery and health are open to all who are known.
        let open = ["/api", "/apis", "/openapi", "/version", "/healthz", "/readyz", "/livez"];
        let allowed = caller.is_in(super::certificates::MASTERS)
            || json::text(review, &["spec", "nonResourceAttributes", "verb"]) == "get"
                && open
                    .iter()
                    .any(|o| path == *o || path.strip_prefix(o).is_some_and(|r| r.starts_with('/')));
        return Ok(json!({ "allowed": allowed }));
    }
    let asked = Attributes {
        verb: text("verb"),
        group: text("group"),
        resource: text("resource"),
        subresource: text("subresource"),
        namespace: text("namespace"),
        name: text("name"),
    };
    let allowed = authz::allows(caller, &asked);
    Ok(if allowed {
        json!({ "allowed": true, "reason": "allowed by the built-in table" })
    } else {
        json!({ "allowed": false })
    })
}

fn rules(caller: &Caller) -> Value {
    let resource_rules: Vec<Value> = authz::grants(caller)
        .iter()
        .map(|g| {
            let mut rule = Map::new();
            rule.insert("verbs".into(), json!(g.verbs));
            rule.insert("apiGroups".into(), json!(g.groups));
            rule.insert("resources".into(), json!(g.resources));
            if !g.names.is_empty() {
                rule.insert("resourceNames".into(), json!(g.names));
            }
            Value::Object(rule)
        })
        .collect();
    json!({
        "resourceRules": resource_rules,
        "nonResourceRules": [{
            "verbs": ["get"],
            "nonResourceURLs": ["/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz", "/version"],
        }],
        "incomplete": false,
    })
}

/// `POST serviceaccounts/x/token`.
pub(crate) fn token_request(api: &Api, target: &Target, body: Value) -> ApiResult<Value> {
    let mut request = body;
    let name = target.name.as_deref().unwrap_or_default();
    let seconds = match json::at(&request, &["spec", "expirationSeconds"]).filter(|v| !v.is_null()) {
        None => 3600,
        Some(value) => value.as_i64().filter(|s| *s >= MIN_SECONDS).ok_or_else(|| {
            let why = format!("may not specify a duration less than {MIN_SECONDS} seconds");
            let cause = Cause::invalid("spec.expirationSeconds", value, &why);
            ApiError::invalid(target.resource, name, vec![cause])
        })?,
    }
    .min(MAX_SECONDS);
    let mut audiences: Vec<String> = json::items(&request, &["spec", "audiences"])
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    if audiences.is_empty() {
        audiences.push(ISSUER.to_owned());
    }
    let bound = api.store.read(|state| -> ApiResult<Bound> {
        let account = state
            .get(&target.resource.store, target.ns(), name)
            .ok_or_else(|| ApiError::not_found(target.resource, name))?;
        let mut bound = Bound {
            namespace: target.ns().to_owned(),
            serviceaccount: Reference::to(account),
            pod: None,
            node: None,
            secret: None,
        };
        let reference = json::at(&request, &["spec", "boundObjectRef"]).filter(|v| !v.is_null());
        let Some(reference) = reference else { return Ok(bound) };
        let text = |key: &str| json::text(reference, &[key]);
        let store = match (text("apiVersion"), text("kind")) {
            ("v1", "Pod") => "pods",
            ("v1", "Secret") => "secrets",
            _ => {
                return Err(ApiError::bad_request(format!(
                    "cannot bind token to object of kind {}: a token is bound to a Pod or a Secret",
                    text("kind")
                )));
            }
        };
        let resource = crate::resources::by_name("", store).ok_or_else(ApiError::path_not_found)?;
        let object = state
            .get(store, target.ns(), text("name"))
            .ok_or_else(|| ApiError::not_found(resource, text("name")))?;
        let uid = text("uid");
        if !uid.is_empty() && uid != json::uid(object) {
            let why = format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have been deleted and then recreated"
            );
            return Err(ApiError::conflict(resource, text("name"), &why));
        }
        if store == "secrets" {
            bound.secret = Some(Reference::to(object));
            return Ok(bound);
        }
        // A token for a Pod names the Pod's own account and no other.
        let own = json::text(object, &["spec", "serviceAccountName"]);
        if own != name {
            return Err(ApiError::bad_request(format!(
                "cannot bind token for serviceaccount \"{name}\" to pod running with different serviceaccount name."
            )));
        }
        bound.pod = Some(Reference::to(object));
        let node = json::text(object, &["spec", "nodeName"]);
        if let Some(node) = state.get("nodes", "", node) {
            bound.node = Some(Reference::to(node));
        }
        Ok(bound)
    })?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        aud: audiences.clone(),
        exp: now + seconds,
        iat: now,
        nbf: now,
        iss: ISSUER.to_owned(),
        jti: tokens::token_id(),
        sub: format!("system:serviceaccount:{}:{name}", target.ns()),
        kubernetes: bound,
    };
    let token = api.tokens.sign(&claims).map_err(ApiError::internal)?;
    let map = json::map_of(&mut request);
    map.insert("apiVersion".into(), "authentication.k8s.io/v1".into());
    map.insert("kind".into(), "TokenRequest".into());
    let metadata = json::object_mut(map, "metadata");
    metadata.insert("name".into(), name.into());
    metadata.insert("namespace".into(), target.ns().into());
    metadata.insert("creationTimestamp".into(), crate::time::now().into());
    let spec = json::object_mut(map, "spec");
    spec.insert("audiences".into(), json!(audiences));
    spec.insert("expirationSeconds".into(), seconds.into());
    map.insert(
        "status".into(),
        json!({ "token": token, "expirationTimestamp": crate::time::in_seconds(seconds) }),
    );
    Ok(request)
}
