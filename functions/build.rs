//! Leaves tables of unwinding out of the functions as they are deployed: a panic aborts there (.cargo/config.toml), so
//! nothing reads more than a megabyte of them, an eighth of each file.

fn main() {
    println!("cargo::rerun-if-changed=tables.ld");
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name: &str, value: &str| std::env::var(name).is_ok_and(|found| found == value);
    // Other linkers read no such script, and deploy nothing.
    let is_deployed = is("PROFILE", "release") && is("CARGO_CFG_TARGET_OS", "linux");
    if let (true, Ok(directory)) = (is_deployed, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/tables.ld");
    }
}
