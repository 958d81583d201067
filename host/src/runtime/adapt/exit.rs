//! Exit codes of core modules. The preview1 adapter reports every failure as 1; `wasi:cli/exit` can carry the code itself, so
//! a module's `proc_exit` is bound to that directly. Pure.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
use wasmparser::{BinaryReader, ImportSectionReader, Imports, TypeRef};
use wit_component::StringEncoding;
use wit_parser::Resolve;

use super::LoadError;

/// As the adapter imports it; the definition has to be whole to be merged with the adapter's.
const INTERFACE: &str = "wasi:cli/exit@0.2.12";
const WIT: &str = "package coracle:node;
world exit { import wasi:cli/exit@0.2.12; }
package wasi:cli@0.2.12 {
  interface exit {
    exit: func(status: result);
    exit-with-code: func(status-code: u8);
  }
}";
/// Magic and version.
const HEADER: usize = 8;
const IMPORTS: u8 = 2;

/// The module with `proc_exit` taken from `wasi:cli/exit`. Both are a function of one i32; the upper bits are dropped, as
/// a process drops them. Unchanged where the module does not import it.
pub(super) fn carry_code(module: &[u8]) -> Result<Cow<'_, [u8]>, LoadError> {
    let mut at = HEADER;
    while let Some(&id) = module.get(at) {
        let mut reader = BinaryReader::new(&module[at + 1..], at + 1);
        let size = reader.read_var_u32().map_err(invalid)? as usize;
        let start = reader.original_position();
        let end = start + size;
        let Some(section) = module.get(start..end) else {
            break;
        };
        if id == IMPORTS
            && let Some(imports) = rename(section, start)?
        {
            let mut changed = module[..at].to_vec();
            changed.push(IMPORTS);
            number(&mut changed, imports.len());
            changed.extend(imports);
            changed.extend(&module[end..]);
            let mut resolve = Resolve::default();
            let package = resolve.push_source("exit.wit", WIT).map_err(invalid)?;
            let world = resolve.select_world(&[package], None).map_err(invalid)?;
            wit_component::embed_component_metadata(
                &mut changed,
                &resolve,
                world,
                StringEncoding::UTF8,
            )
            .map_err(invalid)?;
            return Ok(changed.into());
        }
        at = end;
    }
    Ok(module.into())
}

/// The import section with the one import renamed, or `None` when there is none.
fn rename(section: &[u8], start: usize) -> Result<Option<Vec<u8>>, LoadError> {
    let mut entries = Vec::new();
    let mut found = false;
    let reader = BinaryReader::new(section, start);
    let imports = ImportSectionReader::new(reader)
        .and_then(|imports| {
            imports
                .into_iter_with_offsets()
                .collect::<Result<Vec<_>, _>>()
        })
        .map_err(invalid)?;
    let ends = imports.iter().skip(1).map(|(offset, _)| offset - start);
    let ends = ends.chain([section.len()]);
    for ((offset, import), end) in imports.iter().zip(ends) {
        // Groups of imports with one module name are new; modules of preview1 do not have them.
        let Imports::Single(_, import) = import else {
            return Ok(None);
        };
        match import.ty {
            TypeRef::Func(index)
                if import.module == WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME
                    && import.name == "proc_exit" =>
            {
                found = true;
                name(&mut entries, INTERFACE);
                name(&mut entries, "exit-with-code");
                entries.push(0);
                number(&mut entries, index as usize);
            }
            _ => entries.extend(&section[offset - start..end]),
        }
    }
    let mut renamed = Vec::new();
    number(&mut renamed, imports.len());
    renamed.extend(entries);
    Ok(found.then_some(renamed))
}

fn invalid(error: impl std::fmt::Display) -> LoadError {
    LoadError::Invalid(format!("{error:#}"))
}

fn name(bytes: &mut Vec<u8>, name: &str) {
    number(bytes, name.len());
    bytes.extend(name.as_bytes());
}

/// LEB128.
fn number(bytes: &mut Vec<u8>, mut value: usize) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return;
        }
        bytes.push(low | 0x80);
    }
}
