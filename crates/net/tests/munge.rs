//! Credentials of a real munged, which the test runs with a key and a socket of its own.

// A test's helpers fail like the test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use burstfs_net::{
    AuthError, Authenticator, ChannelLimits, Identity, Munge, RpcError, ServerConfig, ServerLimits, serve,
};
use burstfs_proto::hello::{Refusal, Role};
use burstfs_types::{ClientId, NodeIndex};
use support::*;

/// A munged; ended when dropped.
struct Munged {
    child: Child,
    socket: PathBuf,
    _dir: tempfile::TempDir,
}

impl Munged {
    async fn start() -> Munged {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let key: Vec<u8> = dir.path().as_os_str().as_encoded_bytes().iter().copied().cycle().take(128).collect();
        std::fs::write(path("key"), key).unwrap();
        set_mode(&path("key"), 0o600);
        let socket = path("socket");
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let child = Command::new("munged")
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            // A temporary directory's parents are writable for others, which munged minds.
            .args(["--foreground", "--force", &option("socket", &socket), &option("key-file", &path("key"))])
            .args([option("log-file", &path("log")), option("pid-file", &path("pid"))])
            .arg(option("seed-file", &path("seed")))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("munged is of Debian's package munge");
        let munged = Munged { child, socket, _dir: dir };
        let munge = munged.munge();
        let ready = async {
            while munge.sign(b"").await.is_err() {
                tokio::task::yield_now().await
            }
        };
        within("munged answers", ready).await;
        munged
    }

    fn munge(&self) -> Munge {
        Munge::with_socket(&self.socket).unwrap()
    }
}

impl Drop for Munged {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn own_uid() -> u32 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").unwrap().uid()
}

#[tokio::test]
async fn credentials() {
    let munged = Munged::start().await;
    let munge = munged.munge();
    for payload in [&b""[..], b"payload", &[0; 2000]] {
        let credential = munge.sign(payload).await.unwrap();
        assert_eq!(munge.verify(&credential, payload).await, Ok(own_uid()));
        let again = munge.verify(&credential, payload).await;
        assert!(matches!(&again, Err(AuthError::Invalid(text)) if text.contains("eplayed")), "{again:?}");
    }
    let credential = munge.sign(b"one").await.unwrap();
    assert_eq!(munge.verify(&credential, b"two").await, Err(AuthError::Payload));
    for forged in ["", "MUNGE:", "MUNGE:AwQDAAD:", "a\0b"] {
        let refused = munge.verify(forged, b"").await;
        assert!(matches!(refused, Err(AuthError::Invalid(_))), "{forged}: {refused:?}");
    }
    let other = Munged::start().await;
    let credential = other.munge().sign(b"one").await.unwrap();
    assert!(matches!(munge.verify(&credential, b"one").await, Err(AuthError::Invalid(_))));
    let nobody = Munge::with_socket(Path::new("/nonexistent/munge")).unwrap();
    assert!(matches!(nobody.sign(b"").await, Err(AuthError::Unavailable(_))));
}

#[tokio::test]
async fn a_connection() {
    let munged = Munged::start().await;
    let uid = own_uid();
    let transport = tcp();
    let start = async |uid| {
        let listener = transport.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
        let auth = Arc::new(munged.munge());
        let config = ServerConfig { instance: instance(), uid, auth, limits: ServerLimits::default() };
        serve(listener, config, TestService::new())
    };
    let client = ClientId { node: NodeIndex::new(1), incarnation: 1 };
    let identity = Identity { instance: instance(), uid, role: Role::Node(client), auth: Arc::new(munged.munge()) };
    let xids = burstfs_net::XidSource::new(client);
    let client = burstfs_net::Client::new(transport.clone(), identity, xids, ChannelLimits::default());
    let server = start(uid).await;
    let channel = client.connect_once(server.address(), soon()).await.unwrap();
    assert_eq!(channel.call(&WhoAmI {}, soon()).await.unwrap().0, uid);
    server.shutdown().await;
    if uid != 0 {
        // Root is let in everywhere.
        let server = start(uid + 1).await;
        let refused = client.connect_once(server.address(), soon()).await.err().unwrap();
        assert!(matches!(refused, RpcError::Refused(Refusal::Uid(_))), "{refused:?}");
        server.shutdown().await;
    }
}
