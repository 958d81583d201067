//! What a script is once it is read.

use std::cell::OnceCell;
use std::rc::Rc;

/// One word, before expansion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Word(pub Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
pub enum Part {
    /// As written: pattern characters and `~` count.
    Plain(String),
    /// `'…'` or `\x`: means itself.
    Quoted(String),
    /// `"…"`.
    Double(Vec<Part>),
    Param(Box<Param>),
    Command(Rc<List>),
    Arith(Word),
}

/// `$name` or `${name…}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Param {
    pub name: String,
    pub op: ParamOp,
}

#[derive(Clone, Debug, PartialEq)]
pub enum ParamOp {
    Value,
    Length,
    /// `:-` `:=` `:?` `:+`; without the colon only unset counts.
    Default {
        or_empty: bool,
        word: Word,
    },
    Assign {
        or_empty: bool,
        word: Word,
    },
    Error {
        or_empty: bool,
        word: Word,
    },
    Alternate {
        or_empty: bool,
        word: Word,
    },
    /// `#` `##` `%` `%%`.
    Cut {
        suffix: bool,
        longest: bool,
        pattern: Word,
    },
    /// `${x:offset:length}`.
    Slice {
        offset: Word,
        length: Option<Word>,
    },
    /// `${x/pattern/with}`, `//` for all.
    Replace {
        all: bool,
        pattern: Word,
        with: Word,
    },
}

/// Commands one after another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct List(pub Vec<Item>);

#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub chain: Chain,
    /// Ended by `&`.
    pub background: bool,
}

/// Pipelines joined by `&&` and `||`.
#[derive(Clone, Debug, PartialEq)]
pub struct Chain {
    pub first: Pipeline,
    pub rest: Vec<(Join, Pipeline)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Join {
    And,
    Or,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Begun by `!`.
    pub negated: bool,
    pub commands: Vec<Rc<Command>>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    Simple(Simple),
    Compound(Compound, Vec<Redirect>),
    Function(String, Rc<Command>),
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Simple {
    pub assigns: Vec<(String, Word)>,
    pub words: Vec<Word>,
    pub redirects: Vec<Redirect>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Compound {
    Group(List),
    Subshell(List),
    If {
        arms: Vec<(List, List)>,
        otherwise: Option<List>,
    },
    Loop {
        until: bool,
        condition: List,
        body: List,
    },
    /// Without words: the positional parameters.
    For {
        name: String,
        words: Option<Vec<Word>>,
        body: List,
    },
    Case {
        word: Word,
        arms: Vec<(Vec<Word>, List)>,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Redirect {
    pub fd: u32,
    pub kind: RedirectKind,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RedirectKind {
    Read(Word),
    Write(Word),
    Append(Word),
    ReadWrite(Word),
    /// `2>&1`, `<&0`, `>&-`.
    Duplicate(Word),
    /// `&>file`: both outputs.
    Both {
        to: Word,
        append: bool,
    },
    /// `<<`: its body is read after the line that asks for it.
    Here(Rc<OnceCell<Word>>),
}
