//! Tokens to commands, by recursive descent. Runs nothing.

use std::rc::Rc;

use super::ast::{
    Chain, Command, Compound, Item, Join, List, Part, Pipeline, Redirect, RedirectKind, Simple,
    Word,
};
use super::lex::{Lexed, Lexer, SyntaxError, Token, is_name, is_name_start, wrong};

/// Words that end a list when they stand where a command would.
const CLOSING: &[&str] = &["then", "else", "elif", "fi", "do", "done", "esac", "}"];

pub struct Parser {
    lexer: Lexer,
    /// A token looked at.
    ahead: Option<Token>,
    /// The last command was ended by `;` or `&`.
    separated: bool,
}

impl Parser {
    pub fn new(text: &str) -> Self {
        Self::from(Lexer::new(text))
    }

    fn from(lexer: Lexer) -> Self {
        Self {
            lexer,
            ahead: None,
            separated: false,
        }
    }

    /// The inside of backquotes.
    pub fn inside(text: &str, depth: u32) -> Self {
        Self::from(Lexer::inside(text.chars().collect(), 0, depth))
    }

    /// The inside of `$(…)`, and where it ended.
    pub fn nested(text: Rc<[char]>, at: usize, depth: u32) -> Lexed<(List, usize)> {
        let mut parser = Self::from(Lexer::inside(text, at, depth));
        let list = parser.list()?;
        parser.expect_op(")")?;
        Ok((list, parser.lexer.at))
    }

    /// Everything up to the end of the text.
    pub fn all(&mut self) -> Lexed<List> {
        let list = self.list()?;
        match self.next()? {
            Token::End => Ok(list),
            token => Err(unexpected(&token)),
        }
    }

    /// The commands of the next line that has some; nothing at the end of the text.
    pub fn line(&mut self) -> Lexed<Option<List>> {
        while *self.peek()? == Token::Newline {
            self.ahead = None;
        }
        if *self.peek()? == Token::End {
            return Ok(None);
        }
        let mut items = Vec::new();
        loop {
            items.push(self.item()?);
            match self.peek()? {
                Token::Newline | Token::End => {
                    self.ahead = None;
                    return Ok(Some(List(items)));
                }
                token if closes(token) => return Err(unexpected(token)),
                Token::Op(")" | ";;" | ";" | "&") => return Err(unexpected(self.peek()?)),
                _ => self.separated()?,
            }
        }
    }

    fn peek(&mut self) -> Lexed<&Token> {
        if self.ahead.is_none() {
            self.ahead = Some(self.lexer.next()?);
        }
        Ok(self.ahead.as_ref().unwrap_or(&Token::End))
    }

    fn next(&mut self) -> Lexed<Token> {
        match self.ahead.take() {
            Some(token) => Ok(token),
            None => self.lexer.next(),
        }
    }

    fn take_op(&mut self, op: &str) -> Lexed<bool> {
        let found = matches!(self.peek()?, Token::Op(found) if *found == op);
        if found {
            self.ahead = None;
        }
        Ok(found)
    }

    fn expect_op(&mut self, op: &str) -> Lexed<()> {
        match self.next()? {
            Token::Op(found) if found == op => Ok(()),
            token => Err(unexpected(&token)),
        }
    }

    /// Whether the next word is this reserved one; consumes it.
    fn take_word(&mut self, word: &str) -> Lexed<bool> {
        let found = reserved(self.peek()?) == Some(word);
        if found {
            self.ahead = None;
        }
        Ok(found)
    }

    fn expect_word(&mut self, word: &str) -> Lexed<()> {
        if self.take_word(word)? {
            return Ok(());
        }
        let mut error = unexpected(self.peek()?);
        error.message = format!("{} (expecting \"{word}\")", error.message);
        Err(error)
    }

    fn skip_newlines(&mut self) -> Lexed<()> {
        while *self.peek()? == Token::Newline {
            self.ahead = None;
        }
        Ok(())
    }

    /// Commands up to something that cannot begin one.
    fn list(&mut self) -> Lexed<List> {
        let mut items = Vec::new();
        loop {
            self.skip_newlines()?;
            match self.peek()? {
                Token::End | Token::Op(")" | ";;") => return Ok(List(items)),
                token if closes(token) => return Ok(List(items)),
                _ => items.push(self.item()?),
            }
            self.separated()?;
        }
    }

    /// Two commands on one line have something between them.
    fn separated(&mut self) -> Lexed<()> {
        if self.separated {
            return Ok(());
        }
        match self.peek()? {
            Token::Newline | Token::End | Token::Op(")" | ";;") => Ok(()),
            token if closes(token) => Ok(()),
            token => Err(unexpected(token)),
        }
    }

    /// A list that must not be empty, as in `then …`.
    fn body(&mut self) -> Lexed<List> {
        let list = self.list()?;
        if list.0.is_empty() {
            return Err(unexpected(self.peek()?));
        }
        Ok(list)
    }

    fn item(&mut self) -> Lexed<Item> {
        let chain = self.chain()?;
        let background = self.take_op("&")?;
        self.separated = background || self.take_op(";")?;
        Ok(Item { chain, background })
    }

    fn chain(&mut self) -> Lexed<Chain> {
        let first = self.pipeline()?;
        let mut rest = Vec::new();
        loop {
            let join = if self.take_op("&&")? {
                Join::And
            } else if self.take_op("||")? {
                Join::Or
            } else {
                return Ok(Chain { first, rest });
            };
            self.skip_newlines()?;
            rest.push((join, self.pipeline()?));
        }
    }

    fn pipeline(&mut self) -> Lexed<Pipeline> {
        let mut negated = false;
        while self.take_word("!")? {
            negated = !negated;
        }
        let mut commands = vec![Rc::new(self.command()?)];
        while self.take_op("|")? {
            self.skip_newlines()?;
            commands.push(Rc::new(self.command()?));
        }
        Ok(Pipeline { negated, commands })
    }

    fn command(&mut self) -> Lexed<Command> {
        self.lexer.enter()?;
        let command = match self.compound()? {
            Some(compound) => {
                let mut redirects = Vec::new();
                while let Some(redirect) = self.redirect()? {
                    redirects.push(redirect);
                }
                Command::Compound(compound, redirects)
            }
            None => self.simple()?,
        };
        self.lexer.exit();
        Ok(command)
    }

    fn compound(&mut self) -> Lexed<Option<Compound>> {
        if self.take_op("(")? {
            let list = self.body()?;
            self.expect_op(")")?;
            return Ok(Some(Compound::Subshell(list)));
        }
        let Some(word) = reserved(self.peek()?) else {
            return Ok(None);
        };
        let word = word.to_owned();
        if !matches!(
            word.as_str(),
            "{" | "if" | "while" | "until" | "for" | "case"
        ) {
            return match CLOSING.contains(&word.as_str()) {
                true => Err(unexpected(self.peek()?)),
                false => Ok(None),
            };
        }
        self.ahead = None;
        let compound = match word.as_str() {
            "{" => {
                let list = self.body()?;
                self.expect_word("}")?;
                Compound::Group(list)
            }
            "if" => self.conditional()?,
            "for" => self.for_loop()?,
            "case" => self.case()?,
            _ => {
                let condition = self.body()?;
                let body = self.loop_body()?;
                let until = word == "until";
                Compound::Loop {
                    until,
                    condition,
                    body,
                }
            }
        };
        Ok(Some(compound))
    }

    fn conditional(&mut self) -> Lexed<Compound> {
        let mut arms = Vec::new();
        loop {
            let condition = self.body()?;
            self.expect_word("then")?;
            arms.push((condition, self.body()?));
            if self.take_word("elif")? {
                continue;
            }
            let otherwise = match self.take_word("else")? {
                true => Some(self.body()?),
                false => None,
            };
            self.expect_word("fi")?;
            return Ok(Compound::If { arms, otherwise });
        }
    }

    fn loop_body(&mut self) -> Lexed<List> {
        self.expect_word("do")?;
        let body = self.body()?;
        self.expect_word("done")?;
        Ok(body)
    }

    fn for_loop(&mut self) -> Lexed<Compound> {
        let Token::Word(word) = self.next()? else {
            return wrong("syntax error: bad for loop variable");
        };
        let name = match plain(&word) {
            Some(name) if is_variable(name) => name.to_owned(),
            _ => return wrong("syntax error: bad for loop variable"),
        };
        self.skip_newlines()?;
        let mut words = None;
        if self.take_word("in")? {
            let mut list = Vec::new();
            while let Token::Word(_) = self.peek()? {
                if let Token::Word(word) = self.next()? {
                    list.push(word);
                }
            }
            words = Some(list);
        }
        self.take_op(";")?;
        self.skip_newlines()?;
        let body = self.loop_body()?;
        Ok(Compound::For { name, words, body })
    }

    fn case(&mut self) -> Lexed<Compound> {
        let Token::Word(word) = self.next()? else {
            return wrong("syntax error: case needs a word");
        };
        self.skip_newlines()?;
        self.expect_word("in")?;
        let mut arms = Vec::new();
        loop {
            self.skip_newlines()?;
            if self.take_word("esac")? {
                return Ok(Compound::Case { word, arms });
            }
            self.take_op("(")?;
            let mut patterns = Vec::new();
            loop {
                match self.next()? {
                    Token::Word(pattern) => patterns.push(pattern),
                    token => return Err(unexpected(&token)),
                }
                if !self.take_op("|")? {
                    break;
                }
            }
            self.expect_op(")")?;
            arms.push((patterns, self.list()?));
            if !self.take_op(";;")? {
                self.skip_newlines()?;
                self.expect_word("esac")?;
                return Ok(Compound::Case { word, arms });
            }
        }
    }

    fn simple(&mut self) -> Lexed<Command> {
        let mut simple = Simple::default();
        loop {
            if let Some(redirect) = self.redirect()? {
                simple.redirects.push(redirect);
                continue;
            }
            let Token::Word(word) = self.peek()? else {
                break;
            };
            let word = word.clone();
            self.ahead = None;
            if simple.words.is_empty()
                && let Some(assign) = assignment(&word)
            {
                simple.assigns.push(assign);
                continue;
            }
            if simple.words.is_empty() && plain(&word) == Some("[[") {
                simple.words = self.condition(word)?;
                continue;
            }
            if simple.words.is_empty()
                && simple.assigns.is_empty()
                && simple.redirects.is_empty()
                && let Some(name) = plain(&word)
            {
                let name = name.to_owned();
                if name == "function" {
                    if let Token::Word(word) = self.next()?
                        && let Some(name) = plain(&word)
                    {
                        let name = name.to_owned();
                        if self.take_op("(")? {
                            self.expect_op(")")?;
                        }
                        return self.function(name);
                    }
                    return wrong("syntax error: bad function name");
                }
                if self.take_op("(")? {
                    self.expect_op(")")?;
                    return self.function(name);
                }
            }
            simple.words.push(word);
        }
        if simple == Simple::default() {
            return Err(unexpected(self.peek()?));
        }
        Ok(Command::Simple(simple))
    }

    /// `[[ … ]]`: operators in it are words like others.
    fn condition(&mut self, first: Word) -> Lexed<Vec<Word>> {
        let mut words = vec![first];
        loop {
            match self.next()? {
                Token::Word(word) => {
                    let last = plain(&word) == Some("]]");
                    words.push(word);
                    if last {
                        return Ok(words);
                    }
                }
                Token::Op(op) => words.push(Word(vec![Part::Plain(op.to_owned())])),
                Token::Newline => {}
                token => return Err(unexpected(&token)),
            }
        }
    }

    fn function(&mut self, name: String) -> Lexed<Command> {
        self.skip_newlines()?;
        Ok(Command::Function(name, Rc::new(self.command()?)))
    }

    fn redirect(&mut self) -> Lexed<Option<Redirect>> {
        let number = match self.peek()? {
            Token::Io(fd) => Some(*fd),
            _ => None,
        };
        if number.is_some() {
            self.ahead = None;
        }
        let op = match self.peek()? {
            Token::Op(op) if op.starts_with(['<', '>']) || op.starts_with("&>") => *op,
            _ => return Ok(None),
        };
        self.ahead = None;
        let target = match self.next()? {
            Token::Word(word) => word,
            token => return Err(unexpected(&token)),
        };
        let fd = number.unwrap_or(u32::from(!op.starts_with('<')));
        let kind = match op {
            "<" => RedirectKind::Read(target),
            ">" | ">|" => RedirectKind::Write(target),
            ">>" => RedirectKind::Append(target),
            "<>" => RedirectKind::ReadWrite(target),
            "<&" => RedirectKind::Duplicate(target),
            // `>&file`, as `&>file`.
            ">&" if number.is_none()
                && plain(&target).is_some_and(|t| t != "-" && t.parse::<u32>().is_err()) =>
            {
                RedirectKind::Both {
                    to: target,
                    append: false,
                }
            }
            ">&" => RedirectKind::Duplicate(target),
            "&>" => RedirectKind::Both {
                to: target,
                append: false,
            },
            "&>>" => RedirectKind::Both {
                to: target,
                append: true,
            },
            "<<" | "<<-" => RedirectKind::Here(self.lexer.here(&target, op == "<<-")),
            "<<<" => {
                let mut parts = vec![Part::Double(target.0)];
                parts.push(Part::Quoted("\n".to_owned()));
                let body = std::cell::OnceCell::from(Word(parts));
                RedirectKind::Here(Rc::new(body))
            }
            _ => return wrong(format!("syntax error: unexpected \"{op}\"")),
        };
        Ok(Some(Redirect { fd, kind }))
    }
}

fn unexpected(token: &Token) -> SyntaxError {
    let what = match token {
        Token::Word(word) => plain(word).map_or("word".to_owned(), |text| format!("\"{text}\"")),
        Token::Io(fd) => fd.to_string(),
        Token::Op(op) => format!("\"{op}\""),
        Token::Newline => "newline".to_owned(),
        Token::End => "end of file".to_owned(),
    };
    SyntaxError {
        message: format!("syntax error: unexpected {what}"),
        incomplete: *token == Token::End,
    }
}

/// The text of a word without quotes or expansions.
pub fn plain(word: &Word) -> Option<&str> {
    match word.0.as_slice() {
        [Part::Plain(text)] => Some(text),
        _ => None,
    }
}

fn reserved(token: &Token) -> Option<&str> {
    match token {
        Token::Word(word) => plain(word),
        _ => None,
    }
}

fn closes(token: &Token) -> bool {
    reserved(token).is_some_and(|word| CLOSING.contains(&word))
}

pub fn is_variable(name: &str) -> bool {
    name.starts_with(is_name_start) && name.chars().all(is_name)
}

/// `name=value`.
pub fn assignment(word: &Word) -> Option<(String, Word)> {
    let Some(Part::Plain(text)) = word.0.first() else {
        return None;
    };
    let (name, value) = text.split_once('=')?;
    if !is_variable(name) {
        return None;
    }
    let mut parts = word.0.clone();
    match value {
        "" => {
            parts.remove(0);
        }
        value => parts[0] = Part::Plain(value.to_owned()),
    }
    Some((name.to_owned(), Word(parts)))
}
