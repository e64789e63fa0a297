//! ServiceAccount tokens: what is in them, when they hold.
//!
//! Claims are those of upstream's bound tokens: issuer, audiences, times, `jti`, and under `kubernetes.io` the
//! namespace and the ServiceAccount, Pod, Secret and Node the token is bound to, each with its UID. A token whose
//! ServiceAccount or bound object was deleted, or deleted and made anew, holds no longer.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::jwt::{JwtError, SigningKey};
use crate::config::Config;
use crate::identity::UserInfo;
use crate::objects::Objects;
use crate::resource::GroupResource;

/// What kubelets ask for when nothing else is said; such tokens live longer, so that programs that read their file
/// once go on working.
const KUBELET_SECONDS: i64 = 60 * 60 + 7;
const EXTENDED_SECONDS: i64 = 365 * 24 * 60 * 60;
/// Verified signatures remembered; cleared as a whole when full.
const REMEMBERED: usize = 4096;

/// Name and UID of an object a token is bound to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reference {
    /// Name.
    pub name: String,
    /// UID; empty where the object had none.
    #[serde(default)]
    pub uid: String,
}

/// The claim `kubernetes.io`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Binding {
    /// Namespace of the ServiceAccount.
    pub namespace: String,
    /// Node the Pod runs on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<Reference>,
    /// Pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pod: Option<Reference>,
    /// Secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<Reference>,
    /// ServiceAccount.
    pub serviceaccount: Reference,
    /// From when a warning is due: the token's life was extended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// All claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Claims {
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    iss: String,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    binding: Binding,
    nbf: i64,
    sub: String,
}

/// Why a token does not hold.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Not ours, or damaged.
    #[error(transparent)]
    Jwt(#[from] JwtError),
    /// Claims are missing or of the wrong type.
    #[error("token has unexpected claims")]
    Claims,
    /// Past its time.
    #[error("service account token has expired")]
    Expired,
    /// Before its time.
    #[error("service account token is not valid yet")]
    NotYet,
    /// For somebody else.
    #[error("token audiences {0:?} is invalid for the target audiences {1:?}")]
    Audience(Vec<String>, Vec<String>),
    /// What it is bound to is gone.
    #[error("service account token has been invalidated: {0}")]
    Gone(String),
    /// The store could not be asked.
    #[error("checking the token: {0}")]
    Store(String),
}

/// Issues and verifies ServiceAccount tokens.
pub struct Tokens {
    key: SigningKey,
    issuer: String,
    verified: Mutex<HashMap<String, Arc<Claims>>>,
}

/// A verified token.
#[derive(Debug)]
pub struct Verified {
    /// The ServiceAccount as a user.
    pub user: UserInfo,
    /// Audiences of the token among those asked for.
    pub audiences: Vec<String>,
}

/// What a TokenRequest asks for.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Audiences; empty means the API server.
    pub audiences: Vec<String>,
    /// Life in seconds, checked by the caller.
    pub seconds: i64,
    /// What to bind to.
    pub binding: Binding,
}

impl Tokens {
    /// With the cluster's key and issuer.
    pub fn new(config: &Config) -> Result<Self, JwtError> {
        Ok(Tokens {
            key: SigningKey::from_pem(&config.service_account_key)?,
            issuer: config.service_account_issuer.clone(),
            verified: Mutex::default(),
        })
    }

    /// The audience of the API server itself.
    pub fn default_audience(&self) -> &str {
        &self.issuer
    }

    /// Issues a token; gives it and the second it should be taken for expired.
    pub fn issue(&self, request: &Request, now: i64) -> Result<(String, i64), JwtError> {
        let mut binding = request.binding.clone();
        let own = [self.issuer.clone()];
        let audiences = if request.audiences.is_empty() { &own[..] } else { &request.audiences };
        let mut seconds = request.seconds;
        if seconds == KUBELET_SECONDS && binding.pod.is_some() && audiences == own {
            binding.warnafter = Some(now + seconds);
            seconds = EXTENDED_SECONDS;
        }
        let claims = json!({
            "aud": audiences,
            "exp": now + seconds,
            "iat": now,
            "iss": self.issuer,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": binding,
            "nbf": now,
            "sub": user_name(&binding.namespace, &binding.serviceaccount.name),
        });
        Ok((self.key.sign(&claims)?, now + request.seconds))
    }

    fn claims(&self, token: &str) -> Result<Arc<Claims>, TokenError> {
        if let Some(claims) = self.verified.lock().get(token) {
            return Ok(claims.clone());
        }
        let value = self.key.verify(token)?;
        let claims = Arc::new(Claims::deserialize(value).map_err(|_| TokenError::Claims)?);
        if claims.iss != self.issuer {
            return Err(JwtError::Foreign.into());
        }
        let mut verified = self.verified.lock();
        if verified.len() >= REMEMBERED {
            verified.clear();
        }
        verified.insert(token.to_owned(), claims.clone());
        Ok(claims)
    }

    /// The user of a token that holds now, for one of the audiences (none given: the API server's own).
    pub async fn verify(
        &self,
        token: &str,
        audiences: &[String],
        objects: &dyn Objects,
        now: i64,
    ) -> Result<Verified, TokenError> {
        let claims = self.claims(token)?;
        if now >= claims.exp {
            return Err(TokenError::Expired);
        }
        // A minute of leeway: clocks of nodes differ.
        if now + 60 < claims.nbf {
            return Err(TokenError::NotYet);
        }
        let own = [self.issuer.clone()];
        let wanted = if audiences.is_empty() { &own[..] } else { audiences };
        let matched: Vec<String> = wanted.iter().filter(|a| claims.aud.contains(a)).cloned().collect();
        if matched.is_empty() {
            return Err(TokenError::Audience(claims.aud.clone(), wanted.to_vec()));
        }
        check_bound(&claims.binding, objects).await?;
        Ok(Verified { user: user(&claims), audiences: matched })
    }

    /// `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        self.key.jwks()
    }

    /// `/.well-known/openid-configuration`; `server` is the address clients reach this server at.
    pub fn openid_configuration(&self, server: &str) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", server.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
    }
}

/// User name of a ServiceAccount.
pub fn user_name(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// Groups of a ServiceAccount, `system:authenticated` aside.
pub fn groups(namespace: &str) -> Vec<String> {
    vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}

fn user(claims: &Claims) -> UserInfo {
    let binding = &claims.binding;
    let mut groups = groups(&binding.namespace);
    groups.push("system:authenticated".into());
    let mut extra = BTreeMap::new();
    let mut add = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    add("credential-id", &format!("JTI={}", claims.jti));
    for (kind, reference) in [("pod", &binding.pod), ("node", &binding.node)] {
        if let Some(reference) = reference {
            add(&format!("{kind}-name"), &reference.name);
            add(&format!("{kind}-uid"), &reference.uid);
        }
    }
    UserInfo {
        name: user_name(&binding.namespace, &binding.serviceaccount.name),
        uid: binding.serviceaccount.uid.clone(),
        groups,
        extra,
    }
}

async fn check_bound(binding: &Binding, objects: &dyn Objects) -> Result<(), TokenError> {
    let namespaced = [
        ("serviceaccounts", "service account", Some(&binding.serviceaccount)),
        ("pods", "pod", binding.pod.as_ref()),
        ("secrets", "secret", binding.secret.as_ref()),
    ];
    for (resource, what, reference) in namespaced {
        let Some(reference) = reference else { continue };
        let resource = GroupResource::new("", resource);
        let found = objects.get(&resource, &binding.namespace, &reference.name).await;
        let found = found.map_err(|e| TokenError::Store(e.to_string()))?;
        let uid = found.as_ref().map(|o| o["metadata"]["uid"].as_str().unwrap_or_default());
        match uid {
            None => {
                let name = format!("{}/{}", binding.namespace, reference.name);
                return Err(TokenError::Gone(format!("{what} {name} is gone")));
            }
            Some(uid) if uid != reference.uid => {
                return Err(TokenError::Gone(format!(
                    "{what} UID ({uid}) does not match claim ({})",
                    reference.uid
                )));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;
    use crate::auth::jwt::tests::key_pem;
    use crate::kinds::fake::Fake;

    const NOW: i64 = 1_700_000_000;

    fn tokens() -> Tokens {
        Tokens {
            key: SigningKey::from_pem(&key_pem()).unwrap(),
            issuer: "https://kubernetes.default.svc.cluster.local".into(),
            verified: Mutex::default(),
        }
    }

    fn request(seconds: i64, pod: bool) -> Request {
        let reference = |name: &str, uid: &str| Reference { name: name.into(), uid: uid.into() };
        let binding = Binding {
            namespace: "ns".into(),
            serviceaccount: reference("sa", "u1"),
            pod: pod.then(|| reference("web-0", "p1")),
            ..Default::default()
        };
        Request { audiences: vec![], seconds, binding }
    }

    fn world(account_uid: &str, pod_uid: &str) -> Arc<Fake> {
        let object =
            |name: &str, uid: &str| json!({"metadata": {"name": name, "namespace": "ns", "uid": uid}});
        Fake::with(&[
            ("", "serviceaccounts", object("sa", account_uid)),
            ("", "pods", object("web-0", pod_uid)),
        ])
    }

    #[tokio::test]
    async fn holds_while_everything_it_is_bound_to_does() {
        let tokens = tokens();
        let (token, expires) = tokens.issue(&request(600, true), NOW).unwrap();
        assert_eq!(expires, NOW + 600);
        let verified = tokens.verify(&token, &[], &*world("u1", "p1"), NOW + 1).await.unwrap();
        assert_eq!(verified.user.name, "system:serviceaccount:ns:sa");
        assert_eq!(verified.user.uid, "u1");
        assert_eq!(
            verified.user.groups,
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(verified.user.extra["authentication.kubernetes.io/pod-name"], ["web-0"]);

        let now = NOW + 1;
        let err = |r: Result<Verified, TokenError>| r.unwrap_err().to_string();
        assert!(err(tokens.verify(&token, &[], &*world("u2", "p1"), now).await).contains("UID (u2)"));
        assert!(err(tokens.verify(&token, &[], &*world("u1", "p2"), now).await).contains("pod UID"));
        assert!(err(tokens.verify(&token, &[], &*Fake::with(&[]), now).await).contains("is gone"));
        assert!(err(tokens.verify(&token, &[], &*world("u1", "p1"), NOW + 600).await).contains("expired"));
        let other = ["vault".to_owned()];
        assert!(err(tokens.verify(&token, &other, &*world("u1", "p1"), now).await).contains("audiences"));
    }

    #[tokio::test]
    async fn kubelet_tokens_live_longer_than_they_say() {
        let tokens = tokens();
        let (token, expires) = tokens.issue(&request(KUBELET_SECONDS, true), NOW).unwrap();
        assert_eq!(expires, NOW + KUBELET_SECONDS);
        let later = NOW + KUBELET_SECONDS + 1;
        tokens.verify(&token, &[], &*world("u1", "p1"), later).await.unwrap();
        let (short, _) = tokens.issue(&request(KUBELET_SECONDS, false), NOW).unwrap();
        assert!(tokens.verify(&short, &[], &*world("u1", "p1"), later).await.is_err());
    }
}
