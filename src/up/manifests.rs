//! Manifests on disk → objects to apply. Reads files and standard input; sends nothing.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize as _;
use serde_json::Value;

/// One object of a manifest, and where it stands.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Manifest {
    /// For messages: `manifests/a.yaml` (and `#2` for the second document).
    pub(crate) origin: String,
    pub(crate) api_version: String,
    pub(crate) kind: String,
    /// Empty when the manifest leaves it to the default.
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) object: Value,
}

/// Reads files, directories (their `.yaml`, `.yml` and `.json` files, by name) and `-` (standard input).
///
/// Errors name the file and the place. Nothing is returned unless everything could be read.
pub(crate) fn read(paths: &[PathBuf]) -> Result<Vec<Manifest>> {
    let mut manifests = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("could not read standard input")?;
            parse("standard input", &text, &mut manifests)?;
        } else if path.is_dir() {
            let files = files(path)?;
            if files.is_empty() {
                bail!(
                    "{} holds no .yaml, .yml or .json file (directories below it are not searched)",
                    path.display()
                );
            }
            for file in files {
                read_file(&file, &mut manifests)?;
            }
        } else {
            read_file(path, &mut manifests)?;
        }
    }
    // What others live in comes first; everything else in the order given.
    manifests.sort_by_key(|manifest| match manifest.kind.as_str() {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        _ => 2,
    });
    Ok(manifests)
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        std::fs::read_dir(dir).with_context(|| format!("could not list {}", dir.display()))?;
    let paths = entries
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<Vec<_>, _>>();
    let mut files = paths.with_context(|| format!("could not list {}", dir.display()))?;
    files.retain(|file| {
        let extension = file.extension().and_then(|extension| extension.to_str());
        matches!(extension, Some("yaml" | "yml" | "json")) && file.is_file()
    });
    files.sort();
    Ok(files)
}

fn read_file(path: &Path, manifests: &mut Vec<Manifest>) -> Result<()> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("could not read {}", path.display()))?;
    parse(&path.display().to_string(), &text, manifests)
}

fn parse(origin: &str, text: &str, manifests: &mut Vec<Manifest>) -> Result<()> {
    for (at, document) in serde_norway::Deserializer::from_str(text).enumerate() {
        let origin = if at == 0 {
            origin.to_owned()
        } else {
            format!("{origin}#{}", at + 1)
        };
        let value = Value::deserialize(document)
            .with_context(|| format!("{origin} cannot be read as YAML or JSON"))?;
        if !value.is_null() {
            add(origin, value, manifests)?;
        }
    }
    Ok(())
}

fn add(origin: String, object: Value, manifests: &mut Vec<Manifest>) -> Result<()> {
    let text = |path: &str| {
        object
            .pointer(path)
            .and_then(Value::as_str)
            .unwrap_or_default()
            .to_owned()
    };
    let (api_version, kind) = (text("/apiVersion"), text("/kind"));
    if api_version.is_empty() || kind.is_empty() {
        bail!("{origin} is no Kubernetes object: apiVersion and kind are wanted");
    }
    if kind == "List" {
        for item in object
            .get("items")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            add(origin.clone(), item.clone(), manifests)?;
        }
        return Ok(());
    }
    let name = text("/metadata/name");
    if name.is_empty() {
        bail!(
            "{origin}: {kind}: metadata.name is wanted (metadata.generateName would make another object at each start)"
        );
    }
    manifests.push(Manifest {
        origin,
        api_version,
        kind,
        namespace: text("/metadata/namespace"),
        name,
        object,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Vec<String>> {
        let mut manifests = Vec::new();
        parse("a.yaml", text, &mut manifests)?;
        Ok(manifests
            .iter()
            .map(|m| format!("{} {}/{}", m.origin, m.kind, m.name))
            .collect())
    }

    #[test]
    fn documents_and_lists_are_told_apart() {
        let text = "# comment only\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n---\n\
            {\"apiVersion\": \"v1\", \"kind\": \"List\", \"items\": [{\"apiVersion\": \"v1\", \"kind\": \"Secret\", \"metadata\": {\"name\": \"s\"}}]}\n";
        assert_eq!(
            parsed(text).expect("valid"),
            ["a.yaml ConfigMap/a", "a.yaml#2 Secret/s"]
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let error = format!("{:#}", parsed("a: [b\n").expect_err("no YAML"));
        assert!(
            error.starts_with("a.yaml cannot be read as YAML or JSON: "),
            "{error}"
        );
        let error = parsed("kind: Pod\n")
            .expect_err("no apiVersion")
            .to_string();
        assert_eq!(
            error,
            "a.yaml is no Kubernetes object: apiVersion and kind are wanted"
        );
        assert!(parsed("apiVersion: v1\nkind: Pod\nmetadata: {generateName: x-}\n").is_err());
    }
}
