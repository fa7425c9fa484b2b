//! Bindings to the verbs and connection manager of the rdma-core that is installed where this is built.
//!
//! They are made here, by the bindgen that the workspace has anyway, so that they build with every libclang from 9 on and
//! agree with the installed headers: bindgen checks the layout of each structure when it is compiled.

use std::env;
use std::error::Error;
use std::path::Path;

const HEADERS: &str = "#include <infiniband/verbs.h>\n#include <rdma/rdma_cma.h>\n";

/// What `src/sys.rs` uses. The inline functions of the headers are written there: they have no symbol to link to.
const FUNCTIONS: &str = "rdma_(create|destroy)_(event_channel|id|qp)|\
    rdma_(bind_addr|listen|resolve_addr|resolve_route|connect|accept|reject|disconnect|migrate_id|set_option|event_str)|\
    rdma_(get|ack)_cm_event|\
    ibv_(alloc|dealloc)_pd|ibv_(reg|dereg)_mr|ibv_(create|destroy)_(comp_channel|cq)|ibv_(get|ack)_cq_events?|\
    ibv_query_(device|port)|ibv_(get|free)_device_list|ibv_get_device_name|ibv_wc_status_str|ibv_modify_qp";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-lib=ibverbs");
    println!("cargo::rustc-link-lib=rdmacm");
    let bindings = bindgen::Builder::default()
        .header_contents("rdma.h", HEADERS)
        .allowlist_function(FUNCTIONS)
        .allowlist_type(
            "ibv_(access_flags|wr_opcode|wc_opcode|wc_flags|send_flags|qp_type|qp_attr_mask|port_attr|mw_type)",
        )
        .allowlist_type("ibv_(device_cap_flags|transport_type|port_state|node_type)|rdma_(cm_event_type|port_space)")
        .prepend_enum_name(false)
        .derive_default(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|error| {
            format!(
                "infiniband/verbs.h, rdma/rdma_cma.h (Debian: libibverbs-dev, librdmacm-dev) and libclang are needed, \
                 or a build without the feature `rdma` of burstfs-net: {error}"
            )
        })?;
    let out = env::var("OUT_DIR")?;
    bindings.write_to_file(Path::new(&out).join("rdma.rs"))?;
    Ok(())
}
