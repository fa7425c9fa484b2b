//! Devices, found by the address of the network that they serve.

use std::ffi::CStr;
use std::net::IpAddr;
use std::ptr::NonNull;
use std::sync::Arc;

use thiserror::Error;

use crate::cm::ConnectionId;
use crate::error::{VerbsError, check, check_pointer};
use crate::sys;

/// Why there is no device to use.
#[derive(Debug, Error)]
pub enum Unusable {
    /// The kernel or the libraries know of no RDMA.
    #[error("this machine has no RDMA device")]
    NoDevice,
    /// The kernel has devices, and the library can use none of them.
    #[error(
        "libibverbs has no provider for this machine's RDMA devices (on Debian the package ibverbs-providers has them)"
    )]
    NoProvider,
    /// None serves the address.
    #[error("no RDMA device serves the address {0}")]
    NoAddress(IpAddr),
    /// The port is not up.
    #[error("port {port} of RDMA device {device} is not active")]
    PortDown {
        /// Its name.
        device: String,
        /// Its port.
        port: u8,
    },
    /// It lacks something that burstfs needs.
    #[error("RDMA device {device} has no {what}")]
    Lacks {
        /// Its name.
        device: String,
        /// What.
        what: &'static str,
    },
    /// The limit of locked memory.
    #[error("the limit of locked memory (ulimit -l, LimitMEMLOCK= of slurmd) is too small to register memory: {0}")]
    MemoryLock(VerbsError),
    /// Something else.
    #[error("{0}")]
    Failed(#[from] VerbsError),
}

/// A device's properties.
#[derive(Clone, Copy, Debug)]
pub struct DeviceLimits {
    /// Reads that one connection may have under way.
    pub reads_max: u8,
    /// Work requests of one queue.
    pub work_requests_max: u32,
    /// Windows of the device.
    pub windows_max: u32,
}

/// An open device. Clones are the same.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    /// Keeps the connection manager's context open, in which everything else of the device lives.
    _anchor: ConnectionId,
    context: NonNull<sys::ibv_context>,
    name: String,
    address: IpAddr,
    limits: DeviceLimits,
}

// SAFETY: the context is libibverbs's, whose calls may come from any thread; it lives as long as the anchor.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing here changes after it was made, and nobody calls anything of the anchor any more.
unsafe impl Sync for Inner {}

impl Device {
    /// The device that serves this address of the machine.
    pub fn at(address: IpAddr) -> Result<Device, Unusable> {
        let devices = device_count();
        if devices == 0 {
            return Err(if kernel_has_devices() { Unusable::NoProvider } else { Unusable::NoDevice });
        }
        let anchor = ConnectionId::new()?;
        anchor.bind((address, 0).into()).map_err(|_| Unusable::NoAddress(address))?;
        let context = anchor.context().ok_or(Unusable::NoAddress(address))?;
        let name = name(context);
        let port = anchor.port();
        if !port_is_active(context, port)? {
            return Err(Unusable::PortDown { device: name, port });
        }
        let limits = limits(context, &name)?;
        Ok(Device(Arc::new(Inner { _anchor: anchor, context, name, address, limits })))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The address that it was found by.
    pub fn address(&self) -> IpAddr {
        self.0.address
    }

    /// Its properties.
    pub fn limits(&self) -> DeviceLimits {
        self.0.limits
    }

    pub(crate) fn context(&self) -> *mut sys::ibv_context {
        self.0.context.as_ptr()
    }
}

fn device_count() -> usize {
    let mut count = 0;
    // SAFETY: the list is freed at once and nothing of it is kept.
    unsafe {
        let list = sys::ibv_get_device_list(&mut count);
        if list.is_null() {
            return 0;
        }
        sys::ibv_free_device_list(list);
    }
    usize::try_from(count).unwrap_or(0)
}

/// Whether there is a device for programs to use, also one that the library cannot.
fn kernel_has_devices() -> bool {
    let entries = std::fs::read_dir("/sys/class/infiniband_verbs").into_iter().flatten().flatten();
    entries.into_iter().any(|entry| entry.file_name().as_encoded_bytes().starts_with(b"uverbs"))
}

fn name(context: NonNull<sys::ibv_context>) -> String {
    // SAFETY: an open context has its device, whose name is a string that lives as long.
    unsafe { CStr::from_ptr(sys::ibv_get_device_name(context.as_ref().device)).to_string_lossy().into_owned() }
}

fn port_is_active(context: NonNull<sys::ibv_context>, port: u8) -> Result<bool, VerbsError> {
    // SAFETY: all-zero is a value of this plain structure; the older layout that the function fills is its beginning.
    let (result, attributes) = unsafe {
        let mut attributes: sys::ibv_port_attr = std::mem::zeroed();
        let result = sys::ibv_query_port(context.as_ptr(), port, (&raw mut attributes).cast());
        (result, attributes)
    };
    check("ibv_query_port", result)?;
    Ok(attributes.state == sys::IBV_PORT_ACTIVE)
}

fn limits(context: NonNull<sys::ibv_context>, name: &str) -> Result<DeviceLimits, Unusable> {
    // SAFETY: all-zero is a value of this plain structure, which the function fills.
    let (result, attributes) = unsafe {
        let mut attributes: sys::ibv_device_attr = std::mem::zeroed();
        let result = sys::ibv_query_device(context.as_ptr(), &mut attributes);
        (result, attributes)
    };
    check("ibv_query_device", result)?;
    let lacks = |what| Unusable::Lacks { device: name.to_owned(), what };
    let windows = sys::IBV_DEVICE_MEM_WINDOW_TYPE_2A | sys::IBV_DEVICE_MEM_WINDOW_TYPE_2B;
    if attributes.device_cap_flags & windows == 0 || attributes.max_mw <= 0 {
        return Err(lacks("memory windows of type 2"));
    }
    // SAFETY: an open context has its device.
    let transport = unsafe { (*context.as_ref().device).transport_type };
    if transport != sys::IBV_TRANSPORT_IB {
        return Err(lacks("InfiniBand or RoCE transport"));
    }
    let positive = |value: i32| u32::try_from(value).unwrap_or(0);
    let reads = attributes.max_qp_rd_atom.min(attributes.max_qp_init_rd_atom).clamp(1, 16);
    Ok(DeviceLimits {
        reads_max: u8::try_from(reads).unwrap_or(1),
        work_requests_max: positive(attributes.max_qp_wr),
        windows_max: positive(attributes.max_mw),
    })
}

/// What keeps the memory and connections of one purpose apart from all others of the device. Clones are the same.
#[derive(Clone)]
pub struct ProtectionDomain(Arc<Domain>);

struct Domain {
    pointer: NonNull<sys::ibv_pd>,
    device: Device,
}

// SAFETY: libibverbs allows its calls from any thread; the domain lives as long as this.
unsafe impl Send for Domain {}
// SAFETY: as above; nothing here changes after it was made.
unsafe impl Sync for Domain {}

impl ProtectionDomain {
    /// A new one.
    pub fn new(device: &Device) -> Result<ProtectionDomain, VerbsError> {
        // SAFETY: the device is open.
        let pointer = check_pointer("ibv_alloc_pd", unsafe { sys::ibv_alloc_pd(device.context()) })?;
        Ok(ProtectionDomain(Arc::new(Domain { pointer, device: device.clone() })))
    }

    /// Its device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    pub(crate) fn pointer(&self) -> *mut sys::ibv_pd {
        self.0.pointer.as_ptr()
    }

    pub(crate) fn is(&self, other: &ProtectionDomain) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: everything that was made in the domain keeps a clone of it, so nothing is left in it.
        unsafe { sys::ibv_dealloc_pd(self.pointer.as_ptr()) };
    }
}
