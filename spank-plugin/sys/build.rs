//! Bindings to the SPANK interface of the Slurm that is installed where this is built: a plugin fits one major.minor.

use std::env;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    let bindings = bindgen::Builder::default()
        .header_contents("spank.h", "#include <slurm/slurm_version.h>\n#include <slurm/spank.h>\n")
        .allowlist_function("spank_(context|option_register|get_item|getenv|setenv|unsetenv|job_control_setenv)")
        .allowlist_function("slurm_(error|info|spank_log)")
        .allowlist_type("spank_(option|item|context)")
        .allowlist_var("SLURM_VERSION_NUMBER")
        .prepend_enum_name(false)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .parse_callbacks(Box::new(bindgen::CargoCallbacks::new()))
        .generate()
        .map_err(|error| format!("slurm/spank.h (Debian: libslurm-dev) and libclang are needed: {error}"))?;
    let out = env::var("OUT_DIR")?;
    bindings.write_to_file(Path::new(&out).join("spank.rs"))?;
    Ok(())
}
