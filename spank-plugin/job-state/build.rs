//! Bindings to the part of Slurm's API that asks for one job, of the Slurm that is installed where this is built: the answer's layout, like
//! a plugin's interface, fits one major.minor.

use std::env;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-lib=dylib=slurm");
    let bindings = bindgen::Builder::default()
        .header_contents("job.h", "#include <slurm/slurm.h>\n#include <slurm/slurm_errno.h>\n")
        .allowlist_function("slurm_(init|load_job|free_job_info_msg)")
        .allowlist_type("job_states|slurm_err_t")
        .allowlist_var("JOB_STATE_BASE")
        .prepend_enum_name(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|error| format!("slurm/slurm.h (Debian: libslurm-dev) and libclang are needed: {error}"))?;
    let out = env::var("OUT_DIR")?;
    bindings.write_to_file(Path::new(&out).join("slurm.rs"))?;
    Ok(())
}
