//! Compiles the contract with protox, so that no protoc is needed, and keeps its descriptor for server reflection and
//! for JSON output.

use std::{env, error::Error, fs, path::PathBuf};

fn main() -> Result<(), Box<dyn Error>> {
    const PROTO: &str = "growd/v1/growd.proto";
    println!("cargo:rerun-if-changed=proto");

    let mut compiler = protox::Compiler::new(["proto"])?;
    // Source info carries the comments, which reflection shows to its users.
    compiler.include_imports(true).include_source_info(true).open_file(PROTO)?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("growd_descriptor.bin"), compiler.encode_file_descriptor_set())?;
    let mut config = tonic_prost_build::Config::new();
    // JSON asks each message for its name.
    config.enable_type_names();
    tonic_prost_build::configure().compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    Ok(())
}
