//! Binds a WebAssembly module to JavaScript, as `wasm-bindgen --target web --no-typescript
//! --remove-name-section` does:
//!     bind MODULE FOLDER

use std::env;
use std::error::Error;

use wasm_bindgen_cli_support::Bindgen;

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<_> = env::args_os().skip(1).collect();
    let [module, folder] = &paths[..] else {
        return Err("usage: bind MODULE FOLDER".into());
    };
    let mut bindgen = Bindgen::new();
    bindgen.input_path(module).web(true)?.typescript(false).remove_name_section(true);
    // `init()` without arguments loads the module from the script's folder, as with the tool.
    bindgen.omit_default_module_path(false).generate(folder)?;
    Ok(())
}
