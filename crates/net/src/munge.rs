//! Credentials by MUNGE: the only user of libmunge.
//!
//! libmunge's calls block on munged's unix socket, so each runs on a thread for blocking work. A context is made for
//! each call: contexts are not to be shared between threads, and making one costs far less than the call.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use async_trait::async_trait;

use crate::auth::{AuthError, Authenticator};

/// Credentials of the machine's munged.
#[derive(Clone, Debug, Default)]
pub struct Munge {
    socket: Option<CString>,
}

impl Munge {
    /// Asks munged at its usual socket.
    pub fn new() -> Munge {
        Munge { socket: None }
    }

    /// Asks the munged that listens at `socket`.
    pub fn with_socket(socket: &Path) -> Result<Munge, AuthError> {
        let path = CString::new(socket.as_os_str().as_bytes());
        let path = path.map_err(|_| AuthError::Unavailable("the socket's path contains a NUL".to_owned()))?;
        Ok(Munge { socket: Some(path) })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Context) -> Result<T, AuthError> + Send + 'static,
    ) -> Result<T, AuthError> {
        let socket = self.socket.clone();
        let joined = tokio::task::spawn_blocking(move || call(&Context::new(socket.as_deref())?)).await;
        joined.unwrap_or_else(|error| Err(AuthError::Unavailable(error.to_string())))
    }
}

#[async_trait]
impl Authenticator for Munge {
    async fn sign(&self, payload: &[u8]) -> Result<String, AuthError> {
        let payload = payload.to_vec();
        self.blocking(move |context| context.encode(&payload)).await
    }

    async fn verify(&self, credential: &str, expected: &[u8]) -> Result<u32, AuthError> {
        let credential =
            CString::new(credential).map_err(|_| AuthError::Invalid("a credential with a NUL".to_owned()))?;
        let (uid, payload) = self.blocking(move |context| context.decode(&credential)).await?;
        if payload == expected { Ok(uid) } else { Err(AuthError::Payload) }
    }
}

const OPT_SOCKET: c_int = 8;
const SUCCESS: c_int = 0;
/// Of the errors, those that speak of munged or of this process: internal error, out of memory, socket, time-out. All
/// others speak of the credential.
const NOT_OF_THE_CREDENTIAL: [c_int; 4] = [1, 5, 6, 7];

/// `munge_ctx_t` points to this.
#[repr(C)]
struct MungeCtx {
    opaque: [u8; 0],
}

// munge.h; its enums are C ints.
unsafe extern "C" {
    fn munge_ctx_create() -> *mut MungeCtx;
    fn munge_ctx_destroy(ctx: *mut MungeCtx);
    fn munge_ctx_set(ctx: *mut MungeCtx, option: c_int, ...) -> c_int;
    fn munge_ctx_strerror(ctx: *mut MungeCtx) -> *const c_char;
    fn munge_strerror(error: c_int) -> *const c_char;
    fn munge_encode(credential: *mut *mut c_char, ctx: *mut MungeCtx, payload: *const c_void, len: c_int) -> c_int;
    fn munge_decode(
        credential: *const c_char,
        ctx: *mut MungeCtx,
        payload: *mut *mut c_void,
        len: *mut c_int,
        uid: *mut libc::uid_t,
        gid: *mut libc::gid_t,
    ) -> c_int;
}

/// A context of libmunge; never null, owned, used by one thread.
struct Context(*mut MungeCtx);

/// Memory that libmunge allocated for us with `malloc`; may be null.
struct Malloced(*mut c_void);

impl Context {
    fn new(socket: Option<&CStr>) -> Result<Context, AuthError> {
        // SAFETY: takes nothing; the result is checked.
        let ctx = unsafe { munge_ctx_create() };
        if ctx.is_null() {
            return Err(AuthError::Unavailable("out of memory".to_owned()));
        }
        let context = Context(ctx);
        if let Some(socket) = socket {
            // SAFETY: the context is live; this option takes one NUL-terminated string, which libmunge copies.
            let error = unsafe { munge_ctx_set(context.0, OPT_SOCKET, socket.as_ptr()) };
            context.check(error)?;
        }
        Ok(context)
    }

    fn encode(&self, payload: &[u8]) -> Result<String, AuthError> {
        let len = c_int::try_from(payload.len()).map_err(|_| AuthError::Unavailable("payload too long".to_owned()))?;
        let mut credential: *mut c_char = ptr::null_mut();
        // SAFETY: the context is live; `payload` is readable for `len` bytes; libmunge sets `credential` to a malloced
        // NUL-terminated string, or to null on an error.
        let error = unsafe { munge_encode(&raw mut credential, self.0, payload.as_ptr().cast(), len) };
        let credential = Malloced(credential.cast());
        self.check(error)?;
        if credential.0.is_null() {
            return Err(AuthError::Unavailable("munge_encode gave nothing".to_owned()));
        }
        // SAFETY: not null, NUL-terminated, and alive until `credential` is dropped at the end of this function.
        let text = unsafe { CStr::from_ptr(credential.0.cast()) };
        Ok(text.to_string_lossy().into_owned())
    }

    fn decode(&self, credential: &CStr) -> Result<(u32, Vec<u8>), AuthError> {
        let mut payload: *mut c_void = ptr::null_mut();
        let mut len: c_int = 0;
        let mut uid: libc::uid_t = libc::uid_t::MAX;
        let mut gid: libc::gid_t = libc::gid_t::MAX;
        // SAFETY: the context is live, the credential NUL-terminated; all four out-pointers point to live variables of
        // their types. libmunge sets `payload` to null or to malloced memory of `len` bytes, also for an expired or
        // replayed credential, where it returns an error.
        let error = unsafe {
            munge_decode(credential.as_ptr(), self.0, &raw mut payload, &raw mut len, &raw mut uid, &raw mut gid)
        };
        let payload = Malloced(payload);
        self.check(error)?;
        Ok((uid, payload.bytes(usize::try_from(len).unwrap_or(0))))
    }

    fn check(&self, error: c_int) -> Result<(), AuthError> {
        if error == SUCCESS {
            return Ok(());
        }
        // SAFETY: the context is live; the result is null or a string that lives as long as the context and is copied
        // before any other call with it.
        let text = unsafe { copied(munge_ctx_strerror(self.0)) };
        // SAFETY: returns a static string for any number.
        let text = text.unwrap_or_else(|| unsafe { copied(munge_strerror(error)) }.unwrap_or_default());
        let unavailable = NOT_OF_THE_CREDENTIAL.contains(&error);
        Err(if unavailable { AuthError::Unavailable(text) } else { AuthError::Invalid(text) })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by `munge_ctx_create`, destroyed nowhere else.
        unsafe { munge_ctx_destroy(self.0) }
    }
}

impl Malloced {
    /// Copies `len` bytes, which the allocation must have unless it is null.
    fn bytes(&self, len: usize) -> Vec<u8> {
        if self.0.is_null() || len == 0 {
            return Vec::new();
        }
        // SAFETY: not null; `munge_decode`, the only caller's source, allocated `len` bytes and initialised them.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>(), len) }.to_vec()
    }
}

impl Drop for Malloced {
    fn drop(&mut self) {
        // SAFETY: null or from `malloc`, and freed nowhere else.
        unsafe { libc::free(self.0) }
    }
}

/// Copies a C string.
///
/// # Safety
/// `text` is null or points to a NUL-terminated string that does not change meanwhile.
unsafe fn copied(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: as this function demands.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
