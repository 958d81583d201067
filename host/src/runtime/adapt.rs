//! What a file is, before it is compiled: its world, its imports, or why it cannot run here. Pure.

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wasmparser::{Encoding, Parser, Payload};
use wit_component::ComponentEncoder;

mod exit;

use super::engine::Flavor;
use super::{LoadError, World};

/// A component ready to be compiled.
#[derive(Debug)]
pub(super) struct Adapted<'a> {
    pub(super) wasm: std::borrow::Cow<'a, [u8]>,
    pub(super) world: World,
    pub(super) flavor: Flavor,
}

/// Top-level names of a component.
#[derive(Default)]
struct Names {
    imports: Vec<String>,
    exports: Vec<String>,
}

/// Worlds by the export that shows them, best first: an HTTP binary with a `main` also exports `wasi:cli/run`.
const WORLDS: [(&str, World); 4] = [
    ("wasi:http/handler@0.3.", World::Http03),
    ("wasi:http/incoming-handler@0.2.", World::Http02),
    ("wasi:cli/run@0.3.", World::Command03),
    ("wasi:cli/run@0.2.", World::Command02),
];

/// Looks at `bytes`; a core module becomes a component by the preview1 adapter.
pub(super) fn adapt(bytes: &[u8]) -> Result<Adapted<'_>, LoadError> {
    if !bytes.starts_with(b"\0asm") {
        return Err(foreign(bytes));
    }
    if Parser::is_core_wasm(bytes) {
        let wasm = componentize(bytes)?;
        return Ok(Adapted {
            wasm: wasm.into(),
            world: World::Command02,
            flavor: Flavor::P2,
        });
    }
    let names = names(bytes).map_err(|error| LoadError::Invalid(error.to_string()))?;
    let world = WORLDS
        .iter()
        .find(|(prefix, _)| names.exports.iter().any(|name| name.starts_with(prefix)))
        .map(|(_, world)| *world)
        .ok_or_else(|| LoadError::UnknownWorld {
            exports: names.exports.join(", "),
        })?;
    // Only the versions of WASI decide: other packages have their own numbers.
    let newer = names
        .imports
        .iter()
        .chain(&names.exports)
        .any(|name| name.starts_with("wasi:") && name.contains("@0.3."));
    Ok(Adapted {
        wasm: bytes.into(),
        world,
        flavor: if newer { Flavor::P3 } else { Flavor::P2 },
    })
}

/// What else people put into images, by its first bytes.
fn foreign(bytes: &[u8]) -> LoadError {
    let linux = match bytes {
        [0x7f, b'E', b'L', b'F', ..] => Some("a Linux executable"),
        [b'#', b'!', ..] => Some("a script"),
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("a compressed file system layer"),
        _ if bytes.get(257..262) == Some(b"ustar") => Some("a file system layer"),
        _ => None,
    };
    match linux {
        Some(found) => LoadError::LinuxContainer { found },
        None => LoadError::NotWasm {
            found: describe(bytes),
        },
    }
}

fn describe(bytes: &[u8]) -> String {
    match bytes {
        [] => "an empty file".to_owned(),
        [b'{' | b'[', ..] => "JSON".to_owned(),
        [b'(', ..] => "WebAssembly text; compile it to a binary first".to_owned(),
        _ => format!(
            "a file that starts with {:02x?}",
            &bytes[..bytes.len().min(4)]
        ),
    }
}

fn names(bytes: &[u8]) -> wasmparser::Result<Names> {
    let mut names = Names::default();
    let mut depth = 0_u32;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            // The outermost one is announced by `Version`, nested ones by these, and each ends with `End`.
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    names.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    names.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::Version {
                encoding: Encoding::Module,
                ..
            } if depth == 0 => break,
            _ => {}
        }
    }
    Ok(names)
}

/// Names what a core module lacks before the encoder says it less plainly.
fn componentize(module: &[u8]) -> Result<Vec<u8>, LoadError> {
    let mut starts = false;
    for payload in Parser::new(0).parse_all(module) {
        match payload.map_err(|error| LoadError::Invalid(error.to_string()))? {
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    let import = import.map_err(|error| LoadError::Invalid(error.to_string()))?;
                    if import.module != WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME {
                        return Err(LoadError::MissingImport {
                            interface: import.module.to_owned(),
                            detail: format!("the core module imports {:?} from it", import.name),
                        });
                    }
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    let export = export.map_err(|error| LoadError::Invalid(error.to_string()))?;
                    starts |= export.name == "_start";
                }
            }
            _ => {}
        }
    }
    if !starts {
        return Err(LoadError::UnknownWorld {
            exports: "a core module without _start".to_owned(),
        });
    }
    let module = exit::carry_code(module)?;
    ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|encoder| {
            encoder.adapter(
                WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME,
                WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
            )
        })
        .and_then(|mut encoder| encoder.encode())
        .map_err(|error| LoadError::Invalid(format!("{error:#}")))
}
