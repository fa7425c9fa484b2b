//! An authenticator for tests that run where no munged does.
//!
//! It proves nothing: its members say which uid they are. A realm lives in one process and has no key that could be
//! configured, so two daemons can never accept one another by it; the feature `testing` is off in every binary.

use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use crate::auth::{AuthError, Authenticator};

/// Processes, as a test plays them, that believe one another.
#[derive(Clone, Default)]
pub struct Realm(Arc<Shared>);

#[derive(Default)]
struct Shared {
    key: RandomState,
    made: AtomicU64,
    used: Mutex<HashSet<String>>,
}

impl Realm {
    /// A realm of its own key: it accepts no credential of another.
    pub fn new() -> Realm {
        Realm::default()
    }

    /// A process of `uid`.
    pub fn member(&self, uid: u32) -> Arc<dyn Authenticator> {
        Arc::new(Member { realm: self.clone(), uid })
    }

    fn tag(&self, uid: u32, number: u64, payload: &[u8]) -> u64 {
        self.0.key.hash_one((uid, number, payload))
    }
}

struct Member {
    realm: Realm,
    uid: u32,
}

#[async_trait]
impl Authenticator for Member {
    async fn sign(&self, payload: &[u8]) -> Result<String, AuthError> {
        let number = self.realm.0.made.fetch_add(1, Ordering::Relaxed);
        Ok(format!("test:{}:{number}:{}", self.uid, self.realm.tag(self.uid, number, payload)))
    }

    async fn verify(&self, credential: &str, expected: &[u8]) -> Result<u32, AuthError> {
        let invalid = || AuthError::Invalid("not of this realm".to_owned());
        let mut parts = credential.strip_prefix("test:").ok_or_else(invalid)?.split(':');
        let mut next = || parts.next().and_then(|part| part.parse::<u64>().ok()).ok_or_else(invalid);
        let (uid, number, tag) = (next()?, next()?, next()?);
        let uid = u32::try_from(uid).map_err(|_| invalid())?;
        if tag != self.realm.tag(uid, number, expected) {
            return Err(AuthError::Payload);
        }
        let mut used = self.realm.0.used.lock().unwrap_or_else(PoisonError::into_inner);
        if used.insert(credential.to_owned()) {
            Ok(uid)
        } else {
            Err(AuthError::Invalid("Replayed credential".to_owned()))
        }
    }
}
