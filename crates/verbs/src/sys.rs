//! The bindings: the only place that names where they come from, so that others can take their place.
//!
//! `build.rs` makes them from the installed headers. What the headers define as inline functions has no symbol; those that
//! are needed are here, over the context's table of operations, as the headers have them.

#![allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    unused_qualifications,
    clippy::all
)]

use std::os::raw::c_int;

include!(concat!(env!("OUT_DIR"), "/rdma.rs"));

/// Of `rdma_set_option`; macros and unnamed enumerations have no binding.
pub const RDMA_OPTION_ID: c_int = 0;
pub const RDMA_OPTION_ID_ACK_TIMEOUT: c_int = 3;

/// What a provider answers that lacks an operation.
const MISSING: c_int = libc::EOPNOTSUPP;

/// # Safety
/// As `ibv_post_send`: a live QP, and a chain of work requests whose memory is registered and stays until they complete.
pub unsafe fn ibv_post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: the caller's promise; a live QP has a context with a table of operations.
    unsafe { (*(*qp).context).ops.post_send.map_or(MISSING, |post| post(qp, wr, bad)) }
}

/// # Safety
/// As `ibv_post_recv`.
pub unsafe fn ibv_post_recv(qp: *mut ibv_qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: as above.
    unsafe { (*(*qp).context).ops.post_recv.map_or(MISSING, |post| post(qp, wr, bad)) }
}

/// # Safety
/// As `ibv_poll_cq`: a live CQ, and room for `count` completions at `wc`.
pub unsafe fn ibv_poll_cq(cq: *mut ibv_cq, count: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: as above.
    unsafe { (*(*cq).context).ops.poll_cq.map_or(-MISSING, |poll| poll(cq, count, wc)) }
}

/// # Safety
/// As `ibv_req_notify_cq`: a live CQ.
pub unsafe fn ibv_req_notify_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: as above.
    unsafe { (*(*cq).context).ops.req_notify_cq.map_or(MISSING, |arm| arm(cq, 0)) }
}

/// # Safety
/// As `ibv_alloc_mw`: a live PD. Null, with `errno`, where it fails.
pub unsafe fn ibv_alloc_mw(pd: *mut ibv_pd, kind: ibv_mw_type) -> *mut ibv_mw {
    // SAFETY: as above; what is written to is a window that the provider has just made.
    unsafe {
        let Some(alloc) = (*(*pd).context).ops.alloc_mw else {
            *libc::__errno_location() = MISSING;
            return std::ptr::null_mut();
        };
        alloc(pd, kind)
    }
}

/// # Safety
/// As `ibv_dealloc_mw`: a window that no QP has bound.
pub unsafe fn ibv_dealloc_mw(mw: *mut ibv_mw) -> c_int {
    // SAFETY: as above.
    unsafe { (*(*mw).context).ops.dealloc_mw.map_or(MISSING, |dealloc| dealloc(mw)) }
}
