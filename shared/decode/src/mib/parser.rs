//! Definitions of a module. Only what names and display hints need is kept; the rest is skipped.
//!
//! ```text
//! NAME DEFINITIONS ::= BEGIN
//!     IMPORTS symbol, … FROM MODULE …;
//!     Type ::= syntax                          Type ::= TEXTUAL-CONVENTION … SYNTAX syntax
//!     name OBJECT IDENTIFIER ::= { parent 1 }  name MACRO … ::= { parent 1 }
//!     name TRAP-TYPE ENTERPRISE parent … ::= 1
//! END
//! ```

use std::collections::HashMap;

use super::{
    lexer::{Lexer, Token},
    table::Kind,
};

/// The most arcs of an object identifier (RFC 2578 §3.5).
pub(super) const MAX_ARCS: usize = 128;

/// The most bytes of a display hint (RFC 2579 §3.1: up to 255).
const MAX_HINT: usize = 255;

/// Macros whose value is an object identifier, with what they define.
const MACROS: [(&str, Kind); 10] = [
    ("OBJECT-TYPE", Kind::Object),
    ("NOTIFICATION-TYPE", Kind::Notification),
    ("TRAP-TYPE", Kind::Notification),
    ("MODULE-IDENTITY", Kind::Other),
    ("OBJECT-IDENTITY", Kind::Other),
    ("OBJECT-GROUP", Kind::Other),
    ("NOTIFICATION-GROUP", Kind::Other),
    ("MODULE-COMPLIANCE", Kind::Other),
    ("AGENT-CAPABILITIES", Kind::Other),
    ("OBJECT", Kind::Other),
];

/// A module.
#[derive(Debug, Default)]
pub(super) struct Module<'a> {
    pub(super) name: &'a str,
    /// The module of each imported symbol.
    pub(super) imports: HashMap<&'a str, &'a str>,
    pub(super) nodes: HashMap<&'a str, Node<'a>>,
    pub(super) types: HashMap<&'a str, TypeSyntax<'a>>,
    /// Whether it is of SMIv2, which has MODULE-IDENTITY.
    pub(super) has_identity: bool,
}

/// A definition with an object identifier.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) kind: Kind,
    /// The name that its arcs are below; `None` if they begin at the root.
    pub(super) parent: Option<&'a str>,
    pub(super) arcs: Vec<u32>,
    /// OBJECT-TYPE only.
    pub(super) syntax: Option<TypeSyntax<'a>>,
    /// Whether it is a trap of SMIv1: `arcs` are its number (RFC 1215).
    pub(super) is_trap: bool,
}

/// A type, or the syntax of an object.
#[derive(Debug, Default)]
pub(super) struct TypeSyntax<'a> {
    /// The type that it refines.
    pub(super) base: Option<&'a str>,
    /// Labels of INTEGER or BITS, in order of value.
    pub(super) labels: Vec<(i64, &'a str)>,
    pub(super) is_bits: bool,
    /// SEQUENCE or SEQUENCE OF.
    pub(super) is_container: bool,
    pub(super) hint: Option<&'a [u8]>,
}

/// The modules of a file.
#[derive(Debug, Default)]
pub(super) struct Parsed<'a> {
    pub(super) modules: Vec<Module<'a>>,
    /// The first mistake and its line.
    pub(super) mistake: Option<(usize, &'static str)>,
    /// How many there are.
    pub(super) mistakes: usize,
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The token after the current one.
    next: Option<Token<'a>>,
    parsed: Parsed<'a>,
}

/// Reads the modules of a file.
pub(super) fn parse(text: &[u8]) -> Parsed<'_> {
    let mut lexer = Lexer::new(text);
    let next = lexer.next();
    let mut parser = Parser { lexer, next, parsed: Parsed::default() };
    let mut name = None;
    while let Some(token) = parser.take() {
        match token {
            // `NAME { object identifier } DEFINITIONS ::= BEGIN`: the identifier is obsolete.
            Token::Word("DEFINITIONS") => {
                let is_header = parser.take_if(Token::Assign) && parser.take_if(Token::Word("BEGIN"));
                if let Some(name) = name.take().filter(|_| is_header) {
                    parser.module(name);
                }
            }
            Token::Sign(b'{') => parser.skip_group(),
            Token::Word(word) => name = Some(word),
            _ => {}
        }
    }
    parser.parsed
}

impl<'a> Parser<'a> {
    fn take(&mut self) -> Option<Token<'a>> {
        std::mem::replace(&mut self.next, self.lexer.next())
    }

    fn take_if(&mut self, token: Token<'_>) -> bool {
        let is_next = self.next == Some(token);
        if is_next {
            self.take();
        }
        is_next
    }

    fn mistake(&mut self, reason: &'static str) {
        if self.parsed.mistakes == 0 {
            self.parsed.mistake = Some((self.lexer.line(), reason));
        }
        self.parsed.mistakes += 1;
    }

    /// Skips to the end of a group in braces, brackets or parentheses that has been opened.
    fn skip_group(&mut self) {
        let mut depth = 1_usize;
        while depth > 0 {
            match self.next {
                Some(Token::Sign(b'{' | b'(' | b'[')) => depth += 1,
                Some(Token::Sign(b'}' | b')' | b']')) => depth -= 1,
                // A group that does not end would swallow the definitions after it.
                Some(Token::Assign | Token::Word("END")) | None => return self.mistake("a bracket is not closed"),
                Some(_) => {}
            }
            self.take();
        }
    }

    /// Reads a module behind its BEGIN, and adds it.
    fn module(&mut self, name: &'a str) {
        let mut module = Module { name, ..Module::default() };
        while let Some(token) = self.take() {
            match token {
                Token::Word("END") => {
                    self.parsed.modules.push(module);
                    return;
                }
                Token::Word("IMPORTS") => self.imports(&mut module),
                Token::Word("EXPORTS") => while !matches!(self.take(), Some(Token::Sign(b';')) | None) {},
                Token::Word(name) => self.definition(name, &mut module),
                _ => self.mistake("a definition is expected"),
            }
        }
        self.mistake("the module does not end");
        self.parsed.modules.push(module);
    }

    fn imports(&mut self, module: &mut Module<'a>) {
        let mut symbols = Vec::new();
        loop {
            match self.next {
                Some(Token::Word("FROM")) => {
                    self.take();
                    if let Some(Token::Word(from)) = self.take() {
                        module.imports.extend(symbols.drain(..).map(|symbol| (symbol, from)));
                    }
                }
                Some(Token::Word("END")) | Some(Token::Assign) | None => {
                    return self.mistake("the imports do not end");
                }
                Some(Token::Sign(b';')) => {
                    self.take();
                    return;
                }
                token => {
                    symbols.extend(token.and_then(Token::word));
                    self.take();
                }
            }
        }
    }

    /// Reads the definition of a name.
    fn definition(&mut self, name: &'a str, module: &mut Module<'a>) {
        match self.next {
            Some(Token::Assign) => {
                self.take();
                let is_convention = self.take_if(Token::Word("TEXTUAL-CONVENTION"));
                let mut hint = None;
                while is_convention && !matches!(self.next, Some(Token::Assign | Token::Word("END")) | None) {
                    match self.take() {
                        Some(Token::Word("SYNTAX")) => break,
                        Some(Token::Word("DISPLAY-HINT")) => hint = self.next.and_then(Token::hint),
                        _ => {}
                    }
                }
                let syntax = TypeSyntax { hint, ..self.syntax() };
                module.types.entry(name).or_insert(syntax);
            }
            Some(Token::Word("MACRO")) => {
                while !matches!(self.next, Some(Token::Word("END")) | None) {
                    self.take();
                }
                self.take();
            }
            Some(Token::Word(word)) => match MACROS.iter().find(|(name, _)| *name == word) {
                Some(&(_, kind)) => {
                    self.take();
                    self.node(name, word, kind, module);
                }
                None => self.mistake("a definition is expected"),
            },
            _ => self.mistake("a definition is expected"),
        }
    }

    /// Reads the clauses and the value of a definition by a macro.
    fn node(&mut self, mut name: &'a str, mut macro_name: &'a str, mut kind: Kind, module: &mut Module<'a>) {
        let mut node = Node { kind, parent: None, arcs: Vec::new(), syntax: None, is_trap: false };
        let mut before = "";
        loop {
            match self.take() {
                Some(Token::Assign) => break,
                Some(Token::Word("SYNTAX")) if macro_name == "OBJECT-TYPE" && node.syntax.is_none() => {
                    node.syntax = Some(self.syntax());
                }
                Some(Token::Word("ENTERPRISE")) if macro_name == "TRAP-TYPE" => {
                    self.take_if(Token::Sign(b'{'));
                    node.parent = self.next.and_then(Token::word);
                }
                // The value of the definition before is missing.
                Some(Token::Word(word)) if begins_definition(before, word) => {
                    self.mistake("a definition has no value");
                    (name, macro_name) = (before, word);
                    kind = MACROS.iter().find(|(name, _)| *name == word).map_or(Kind::Other, |&(_, kind)| kind);
                    node = Node { kind, parent: None, arcs: Vec::new(), syntax: None, is_trap: false };
                }
                Some(Token::Word(word)) => {
                    before = word;
                    continue;
                }
                Some(_) => {}
                None => return self.mistake("a definition has no value"),
            }
            before = "";
        }
        module.has_identity |= macro_name == "MODULE-IDENTITY";
        if macro_name == "TRAP-TYPE" {
            node.is_trap = true;
            let Some(Token::Number(number)) = self.next else { return self.mistake("a trap has no number") };
            self.take();
            let Some(number) = number.and_then(|number| u32::try_from(number).ok()) else {
                return self.mistake("the number of a trap exceeds 32 bits");
            };
            node.arcs.push(number);
        } else if !self.value(&mut node) {
            return;
        }
        module.nodes.entry(name).or_insert(node);
    }

    /// Reads the value of an object identifier: `{ parent 1 }`, `{ iso org(3) 6 }`.
    fn value(&mut self, node: &mut Node<'a>) -> bool {
        if !self.take_if(Token::Sign(b'{')) {
            self.mistake("an object identifier is expected");
            return false;
        }
        loop {
            match self.next {
                Some(Token::Sign(b'}')) => {
                    self.take();
                    break;
                }
                Some(Token::Number(number)) => {
                    self.take();
                    let Some(arc) = number.and_then(|number| u32::try_from(number).ok()) else {
                        self.mistake("an arc exceeds 32 bits");
                        return false;
                    };
                    node.arcs.push(arc);
                }
                Some(Token::Word(word)) => {
                    self.take();
                    // `name(3)` is the arc 3, and a name alone is the parent. The module in
                    // `MODULE.name` is left out: parents are found by their names.
                    match self.next {
                        Some(Token::Sign(b'(')) => {
                            self.take();
                            continue;
                        }
                        Some(Token::Sign(b'.')) => continue,
                        _ if node.parent.is_none() && node.arcs.is_empty() => node.parent = Some(word),
                        _ => {
                            self.mistake("an arc has no number");
                            return false;
                        }
                    }
                }
                Some(Token::Sign(b')' | b'.')) => {
                    self.take();
                }
                _ => {
                    self.mistake("an object identifier does not end");
                    return false;
                }
            }
            if node.arcs.len() > MAX_ARCS {
                self.mistake("an object identifier has more than 128 arcs");
                return false;
            }
        }
        if node.arcs.is_empty() && node.parent.is_none() {
            self.mistake("an object identifier is empty");
            return false;
        }
        true
    }

    /// Reads a type up to its labels. Constraints are skipped.
    fn syntax(&mut self) -> TypeSyntax<'a> {
        let mut syntax = TypeSyntax::default();
        // `[APPLICATION 1] IMPLICIT`
        if self.take_if(Token::Sign(b'[')) {
            self.skip_group();
            self.take_if(Token::Word("IMPLICIT"));
        }
        let Some(Token::Word(word)) = self.next else {
            self.mistake("a type is expected");
            return syntax;
        };
        self.take();
        match word {
            "SEQUENCE" | "CHOICE" => {
                syntax.is_container = true;
                if self.take_if(Token::Word("OF")) {
                    self.take();
                }
            }
            "OCTET" | "OBJECT" => {
                self.take();
            }
            "INTEGER" | "BITS" => syntax.is_bits = word == "BITS",
            _ => {
                syntax.base = Some(word);
                if self.take_if(Token::Sign(b'.')) {
                    syntax.base = self.take().and_then(Token::word);
                }
            }
        }
        if self.take_if(Token::Sign(b'{')) {
            if syntax.is_container {
                self.skip_group();
            } else {
                self.labels(&mut syntax);
            }
        }
        if self.take_if(Token::Sign(b'(')) {
            self.skip_group();
        }
        syntax
    }

    /// Reads `up(1), down(2), unknown(-1) }`.
    fn labels(&mut self, syntax: &mut TypeSyntax<'a>) {
        let mut label = None;
        let mut is_negative = false;
        loop {
            match self.next {
                Some(Token::Sign(b'}')) => {
                    self.take();
                    break;
                }
                // Two words without a number between them are the clauses behind the list.
                Some(Token::Word(word)) if label.is_some() || word == "END" => {
                    self.mistake("a list of labels does not end");
                    break;
                }
                Some(Token::Assign) | None => {
                    self.mistake("a list of labels does not end");
                    break;
                }
                Some(Token::Word(word)) => label = Some(word),
                Some(Token::Sign(b'-')) => is_negative = true,
                Some(Token::Number(Some(number))) => {
                    let value = if is_negative { -number } else { number };
                    syntax.labels.extend(label.take().map(|label| (value, label)));
                    is_negative = false;
                }
                Some(_) => {}
            }
            self.take();
        }
        syntax.labels.sort_by_key(|(value, _)| *value);
        syntax.labels.dedup_by_key(|(value, _)| *value);
    }
}

/// Whether a name and a word begin a definition: `name OBJECT-TYPE`. OBJECT is also a clause.
fn begins_definition(name: &str, word: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase())
        && word != "OBJECT"
        && MACROS.iter().any(|(name, _)| *name == word)
}

impl<'a> Token<'a> {
    fn word(self) -> Option<&'a str> {
        match self {
            Token::Word(word) => Some(word),
            _ => None,
        }
    }

    fn hint(self) -> Option<&'a [u8]> {
        match self {
            Token::Text(text) => Some(text).filter(|text| text.len() <= MAX_HINT),
            _ => None,
        }
    }
}
