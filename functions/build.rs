//! Leaves tables of unwinding out of the functions as they are deployed: a panic aborts there (.cargo/config.toml), so
//! nothing reads more than a megabyte of them, an eighth of each file.

fn main() {
    println!("cargo::rerun-if-changed=tables.ld");
    println!("cargo::rerun-if-changed=build.rs");
    let is_release = std::env::var("PROFILE").is_ok_and(|profile| profile == "release");
    if let (true, Ok(directory)) = (is_release, std::env::var("CARGO_MANIFEST_DIR")) {
        println!("cargo::rustc-link-arg-bins=-Wl,-T,{directory}/tables.ld");
    }
}
