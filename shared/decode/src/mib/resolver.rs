//! From modules to the table: object identifiers, and what their values show.

use std::{collections::HashMap, fmt::Write as _};

use super::{
    known,
    parser::{self, MAX_ARCS, Module, Node, Parsed, TypeSyntax},
    table::{Builder, Kind, Labels, Mib},
};

/// The longest chain of types.
const MAX_TYPES: usize = 64;

/// snmpTraps, and snmp: traps of the latter are the generic ones (RFC 2576 §2.1.2).
const SNMP_TRAPS: [u32; 9] = [1, 3, 6, 1, 6, 3, 1, 1, 5];
const SNMP: [u32; 7] = [1, 3, 6, 1, 2, 1, 11];

/// What is read of a folder of MIB files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most files.
    pub max_files: usize,
    /// The largest file, bytes.
    pub max_file_bytes: usize,
    /// The sum of all files, bytes.
    pub max_total_bytes: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_files: 10_000, max_file_bytes: 8 << 20, max_total_bytes: 256 << 20 }
    }
}

/// A file of modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MibFile {
    /// Its name, for messages.
    pub name: String,
    /// Its text.
    pub text: Vec<u8>,
}

/// A file that was skipped, or of which a part was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    /// The name of the file.
    pub file: String,
    /// Why, in one line: the first mistake, and how many there are.
    pub reason: String,
    /// Whether nothing of the file is used.
    pub is_whole: bool,
}

/// The result of loading.
#[derive(Debug)]
pub struct Loaded {
    /// The table. What modules define takes precedence over what is known without them.
    pub mib: Mib,
    /// Modules that are in the table.
    pub modules: usize,
    /// Files with mistakes, in the order of the files.
    pub skipped: Vec<Skipped>,
}

impl Default for Mib {
    fn default() -> Mib {
        let mut builder = Builder::new();
        known::add_all(&mut builder);
        builder.build()
    }
}

/// Mistakes of a file.
#[derive(Clone, Debug, Default)]
struct Mistakes {
    first: String,
    count: usize,
    is_whole: bool,
}

impl Mistakes {
    fn add(&mut self, reason: impl FnOnce() -> String) {
        if self.count == 0 {
            self.first = reason();
        }
        self.count += 1;
    }
}

/// Compiles files. Where two files have the same module, the first has precedence. Files above the
/// limits are skipped.
pub fn load(files: &[MibFile], limits: Limits) -> Loaded {
    let mut mistakes = vec![Mistakes::default(); files.len()];
    let mut set = Set::default();
    let mut total = 0;
    for (index, file) in files.iter().enumerate() {
        let mistakes = &mut mistakes[index];
        let length = file.text.len();
        let excess = if index >= limits.max_files {
            Some(format!("more than {} files", limits.max_files))
        } else if length > limits.max_file_bytes {
            Some(format!("{length} bytes, more than {}", limits.max_file_bytes))
        } else if total + length > limits.max_total_bytes {
            Some(format!("all files together exceed {} bytes", limits.max_total_bytes))
        } else {
            None
        };
        if let Some(reason) = excess {
            mistakes.is_whole = true;
            mistakes.add(|| reason);
            continue;
        }
        total += length;
        let parsed = parser::parse(&file.text);
        set.add(index, parsed, files, mistakes);
    }
    set.index();

    let mut builder = Builder::new();
    known::add_all(&mut builder);
    let mut shown = Shown::default();
    // What is added later replaces what is there: objects and notifications other names, SMIv2
    // what it was translated from, and first files later ones.
    for is_defined in [false, true] {
        for has_identity in [false, true] {
            for (file, module) in set.modules.iter().rev().filter(|(_, module)| module.has_identity == has_identity) {
                let is_wanted = |node: &Node<'_>| (node.kind != Kind::Other) == is_defined;
                let mut names: Vec<&str> =
                    module.nodes.iter().filter(|(_, node)| is_wanted(node)).map(|(name, _)| *name).collect();
                names.sort_unstable();
                for name in names {
                    let result = set.add_node(name, module, &mut builder, &mut shown);
                    if let Err(reason) = result {
                        mistakes[*file].add(|| format!("{}: {reason}", cut(name)));
                    }
                }
            }
        }
    }
    let with_mistakes = files.iter().zip(mistakes).filter(|(_, mistakes)| mistakes.count > 0);
    let skipped = with_mistakes.map(|(file, mistakes)| {
        let mut reason = mistakes.first;
        if mistakes.count > 1 {
            let _ = write!(reason, " ({} mistakes)", mistakes.count);
        }
        Skipped { file: file.name.clone(), reason, is_whole: mistakes.is_whole }
    });
    Loaded { modules: set.modules.len(), skipped: skipped.collect(), mib: builder.build() }
}

/// All modules, and where names are defined.
#[derive(Default)]
struct Set<'a> {
    /// With the index of their file.
    modules: Vec<(usize, Module<'a>)>,
    by_name: HashMap<&'a str, usize>,
    /// The only module that defines a name; `None` if several do.
    nodes: HashMap<&'a str, Option<usize>>,
    types: HashMap<&'a str, Option<usize>>,
}

/// Labels and hints that the table has already.
#[derive(Default)]
struct Shown<'a> {
    /// By the address of the labels in their definition, so that equal lists need no comparison.
    labels: HashMap<*const (i64, &'a str), u32>,
    hints: HashMap<&'a [u8], u32>,
    conventions: HashMap<&'a str, u32>,
}

impl<'a> Set<'a> {
    /// Adds the modules of a file.
    fn add(&mut self, file: usize, parsed: Parsed<'a>, files: &[MibFile], mistakes: &mut Mistakes) {
        if let Some((line, reason)) = parsed.mistake {
            mistakes.add(|| format!("line {line}: {reason}"));
            mistakes.count = parsed.mistakes;
        }
        if parsed.modules.is_empty() {
            mistakes.is_whole = true;
            mistakes.add(|| "no module in it".to_owned());
        }
        let before = self.modules.len();
        for module in parsed.modules {
            if let Some(&index) = self.by_name.get(module.name) {
                let other = &files[self.modules[index].0].name;
                mistakes.add(|| format!("module {} is in {other} already", cut(module.name)));
                continue;
            }
            self.by_name.insert(module.name, self.modules.len());
            self.modules.push((file, module));
        }
        mistakes.is_whole |= self.modules.len() == before;
    }

    fn index(&mut self) {
        for (index, (_, module)) in self.modules.iter().enumerate() {
            for name in module.nodes.keys() {
                self.nodes.entry(name).and_modify(|only| *only = None).or_insert(Some(index));
            }
            for name in module.types.keys() {
                self.types.entry(name).and_modify(|only| *only = None).or_insert(Some(index));
            }
        }
    }

    /// Adds a definition to the table.
    fn add_node<'s>(
        &'s self,
        name: &str,
        module: &'s Module<'a>,
        builder: &mut Builder,
        shown: &mut Shown<'s>,
    ) -> Result<(), String> {
        let node = &module.nodes[name];
        let arcs = self.arcs(module, node)?;
        let syntax = node.syntax.as_ref();
        let is_container = syntax.is_some_and(|syntax| {
            let base = syntax.base.and_then(|base| self.find_type(module, base));
            syntax.is_container || base.is_some_and(|(_, base)| base.is_container)
        });
        let kind = if is_container { Kind::Container } else { node.kind };
        let (labels, hint) = syntax.map_or((None, None), |syntax| self.shown(module, syntax, builder, shown));
        let is_added = builder.add(&arcs, name, module.name, kind, labels, hint);
        if is_added { Ok(()) } else { Err("the table is full, or the name is too long".to_owned()) }
    }

    /// The arcs of a definition.
    fn arcs(&self, module: &Module<'a>, node: &Node<'a>) -> Result<Vec<u32>, String> {
        let mut parts = vec![&node.arcs[..]];
        let mut total = node.arcs.len();
        let mut place = module;
        let mut parent = node.parent;
        let mut root: &[u32] = &[];
        while let Some(name) = parent {
            // Each step takes one, so that a circle ends too.
            if total + parts.len() > 2 * MAX_ARCS {
                return Err("circular, or more than 128 arcs".to_owned());
            }
            match self.find_node(place, name) {
                Some((found, node)) => {
                    parts.push(&node.arcs);
                    total += node.arcs.len();
                    (place, parent) = (found, node.parent);
                }
                None => match known::NAMES.iter().find(|(known, ..)| *known == name) {
                    Some((_, arcs, ..)) => {
                        root = arcs;
                        parent = None;
                    }
                    None => return Err(self.missing(place, name)),
                },
            }
        }
        let mut arcs = root.to_vec();
        arcs.extend(parts.iter().rev().copied().flatten());
        if node.is_trap {
            let number = arcs.pop().unwrap_or_default();
            if arcs == SNMP {
                arcs = SNMP_TRAPS.to_vec();
                arcs.push(number.saturating_add(1));
            } else {
                arcs.extend([0, number]);
            }
        }
        if arcs.len() > MAX_ARCS { Err("more than 128 arcs".to_owned()) } else { Ok(arcs) }
    }

    /// Why a name is not found.
    fn missing(&self, module: &Module<'_>, name: &str) -> String {
        match module.imports.get(name) {
            Some(from) if !self.by_name.contains_key(from) => {
                format!("its parent {} is in module {}, which is missing", cut(name), cut(from))
            }
            _ => format!("its parent {} is not defined", cut(name)),
        }
    }

    fn find_node<'s>(&'s self, module: &'s Module<'a>, name: &str) -> Option<(&'s Module<'a>, &'s Node<'a>)> {
        self.find(module, name, &self.nodes, |module| module.nodes.get(name))
    }

    fn find_type<'s>(&'s self, module: &'s Module<'a>, name: &str) -> Option<(&'s Module<'a>, &'s TypeSyntax<'a>)> {
        self.find(module, name, &self.types, |module| module.types.get(name))
    }

    /// Looks for a name in the module, in the module that it imports the name from, and in the only
    /// module that has it.
    fn find<'s, T>(
        &'s self,
        module: &'s Module<'a>,
        name: &str,
        only: &HashMap<&str, Option<usize>>,
        get: impl Fn(&'s Module<'a>) -> Option<&'s T>,
    ) -> Option<(&'s Module<'a>, &'s T)> {
        let imported = || module.imports.get(name).and_then(|from| self.by_name.get(from));
        let only = || only.get(name).and_then(Option::as_ref);
        let in_module = |index: &usize| {
            let module = &self.modules[*index].1;
            get(module).map(|found| (module, found))
        };
        let own = get(module).map(|found| (module, found));
        own.or_else(|| imported().and_then(in_module)).or_else(|| only().and_then(in_module))
    }

    /// The labels and the hint of a syntax: the nearest in its chain of types.
    fn shown<'s>(
        &'s self,
        module: &'s Module<'a>,
        syntax: &'s TypeSyntax<'a>,
        builder: &mut Builder,
        shown: &mut Shown<'s>,
    ) -> (Option<u32>, Option<u32>) {
        let (mut place, mut current) = (module, syntax);
        let (mut labels, mut hint) = (None, None);
        for _ in 0..MAX_TYPES {
            if labels.is_none() && !current.labels.is_empty() {
                labels = Some(shown.labels_of(current, builder));
            }
            if hint.is_none() {
                hint = current.hint.map(|hint| shown.hint_of(hint, builder));
            }
            let Some(base) = current.base else { break };
            match self.find_type(place, base) {
                Some(found) => (place, current) = found,
                None => {
                    if let Some((text, known)) = known::convention(base) {
                        hint = hint.or_else(|| (!text.is_empty()).then(|| shown.hint_of(text.as_bytes(), builder)));
                        labels = labels.or_else(|| Some(shown.convention_of(base, known?, builder)));
                    }
                    break;
                }
            }
        }
        (labels, hint)
    }
}

impl<'a> Shown<'a> {
    fn labels_of(&mut self, syntax: &TypeSyntax<'a>, builder: &mut Builder) -> u32 {
        *self.labels.entry(syntax.labels.as_ptr()).or_insert_with(|| {
            let labels = syntax.labels.iter().map(|(value, label)| (*value, (*label).to_owned())).collect();
            builder.labels(Labels { labels, is_bits: syntax.is_bits })
        })
    }

    fn hint_of(&mut self, hint: &'a [u8], builder: &mut Builder) -> u32 {
        *self.hints.entry(hint).or_insert_with(|| builder.hint(&String::from_utf8_lossy(hint)))
    }

    fn convention_of(&mut self, name: &'a str, labels: Labels, builder: &mut Builder) -> u32 {
        *self.conventions.entry(name).or_insert_with(|| builder.labels(labels))
    }
}

/// A word of a file for a message.
fn cut(word: &str) -> &str {
    word.get(..64).unwrap_or(word)
}
