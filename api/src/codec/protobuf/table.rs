//! The table of messages, read from text on first use (its form is explained in `facts.py`). Pure.

use std::collections::HashMap;
use std::sync::LazyLock;

/// Names in the table leave this away.
const PREFIX: &str = "io.k8s.";

#[derive(Debug)]
pub(super) struct Table {
    messages: Vec<Vec<Row>>,
    by_name: HashMap<&'static str, MessageId>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct MessageId(u32);

/// One field of a message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub(super) tag: u32,
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) element: Element,
    pub(super) pointer: bool,
    pub(super) omitempty: bool,
    /// An embedded struct: its fields stand beside this message's own in JSON.
    pub(super) inline: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Shape {
    One,
    List,
    /// Keys are always text.
    Map,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Element {
    String,
    Integer,
    Boolean,
    Double,
    Bytes,
    Quantity,
    IntOrString,
    Time,
    MicroTime,
    /// A named list of strings wrapped in a message (`ExtraValue`).
    StringList,
    /// Bytes that hold JSON: `RawExtension`, `JSON`, `FieldsV1`.
    RawJson,
    SchemaOrArray,
    SchemaOrBool,
    SchemaOrStrings,
    Message(MessageId),
}

// === impl Table ===

impl Table {
    pub(super) fn builtin() -> &'static Self {
        static TABLE: LazyLock<Table> = LazyLock::new(|| {
            Table::parse(include_str!("../../facts/protobuf.txt"))
                .expect("a test reads this very table")
        });
        &TABLE
    }

    /// By definition name: `io.k8s.api.core.v1.Pod`.
    pub(super) fn find(&self, definition: &str) -> Option<MessageId> {
        self.by_name.get(definition.strip_prefix(PREFIX)?).copied()
    }

    /// Fields in order of their tags.
    pub(super) fn rows(&self, message: MessageId) -> &[Row] {
        &self.messages[message.0 as usize]
    }

    pub(super) fn parse(text: &'static str) -> Result<Self, String> {
        let mut by_name = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with(['\t', '#'])) {
            let id = MessageId(u32::try_from(by_name.len()).map_err(|e| e.to_string())?);
            by_name.insert(line, id);
        }
        let mut messages: Vec<Vec<Row>> = Vec::with_capacity(by_name.len());
        for (index, line) in text.lines().enumerate() {
            if let Some(row) = line.strip_prefix('\t') {
                let row = parse_row(row, &by_name)
                    .ok_or_else(|| format!("protobuf facts, line {}: {row:?}", index + 1))?;
                messages
                    .last_mut()
                    .ok_or("a field outside of a message")?
                    .push(row);
            } else if !line.starts_with('#') {
                messages.push(Vec::new());
            }
        }
        for rows in &mut messages {
            rows.sort_by_key(|row| row.tag);
            rows.shrink_to_fit();
        }
        Ok(Self { messages, by_name })
    }

    #[cfg(test)]
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.by_name.keys().copied()
    }
}

/// `TAG FIELD SHAPE ELEMENT [p][o][i]`
fn parse_row(text: &'static str, names: &HashMap<&'static str, MessageId>) -> Option<Row> {
    let mut words = text.split(' ');
    let tag = words.next()?.parse().ok()?;
    let name = words.next()?;
    let shape = match words.next()? {
        "." => Shape::One,
        "[" => Shape::List,
        "{" => Shape::Map,
        _ => return None,
    };
    let element = parse_element(words.next()?, names)?;
    let flags = words.next().unwrap_or_default();
    Some(Row {
        tag,
        name,
        shape,
        element,
        pointer: flags.contains('p'),
        omitempty: flags.contains('o'),
        inline: flags.contains('i'),
    })
}

fn parse_element(text: &str, names: &HashMap<&'static str, MessageId>) -> Option<Element> {
    Some(match text {
        "s" => Element::String,
        "i" => Element::Integer,
        "b" => Element::Boolean,
        "f" => Element::Double,
        "y" => Element::Bytes,
        "q" => Element::Quantity,
        "o" => Element::IntOrString,
        "t" => Element::Time,
        "m" => Element::MicroTime,
        "list" => Element::StringList,
        "*RawExtension" | "*JSON" | "*FieldsV1" => Element::RawJson,
        "*JSONSchemaPropsOrArray" => Element::SchemaOrArray,
        "*JSONSchemaPropsOrBool" => Element::SchemaOrBool,
        "*JSONSchemaPropsOrStringArray" => Element::SchemaOrStrings,
        _ => Element::Message(*names.get(text.strip_prefix('=')?)?),
    })
}
