//! The grammar: nodes from parts, pipelines from tokens.

use std::collections::VecDeque;

use super::lex::{Part, Token, parts};
use super::value::Value;
use super::{ParseError, UNSUPPORTED, func};

/// Deepest nesting of blocks and parentheses.
const DEPTH: usize = 50;

/// A piece of a template.
#[derive(Debug)]
pub enum Node {
    /// Copied to the output.
    Text(String),
    /// `{{pipeline}}`.
    Print(Pipe),
    /// `if`, `with` or `range` with what follows when there is something, and when not.
    Block(Kind, Pipe, Vec<Node>, Vec<Node>),
    /// `break`.
    Break,
    /// `continue`.
    Continue,
}

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `if`
    If,
    /// `with`
    With,
    /// `range`
    Range,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug)]
pub struct Pipe {
    /// `$x` or, for `range`, `$i, $x`.
    pub variables: Vec<String>,
    /// `:=` rather than `=`.
    pub declares: bool,
    /// At least one.
    pub commands: Vec<Command>,
}

/// A function or value, and arguments.
#[derive(Debug)]
pub struct Command {
    /// Function.
    pub function: Option<func::Function>,
    /// Arguments; without a function, exactly one.
    pub args: Vec<Term>,
}

/// A value and the fields asked of it.
#[derive(Debug)]
pub struct Term {
    /// Where the value comes from.
    pub base: Base,
    /// Field names, applied in turn.
    pub fields: Vec<String>,
}

/// Where a value comes from.
#[derive(Debug)]
pub enum Base {
    /// `.`
    Dot,
    /// `$x`
    Variable(String),
    /// A constant.
    Constant(Value),
    /// `(pipeline)`, or a function without arguments.
    Pipe(Box<Pipe>),
}

/// Reads a template.
pub fn parse(template: &str) -> Result<Vec<Node>, ParseError> {
    let mut parser = Parser {
        parts: parts(template)?.into(),
        line: 1,
        depth: 0,
        loops: 0,
        variables: vec![String::new()],
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        End::OfText => Ok(nodes),
        End::AtElse(_) => Err(parser.error("unexpected {{else}}")),
        End::OfBlock => Err(parser.error("unexpected {{end}}")),
    }
}

/// What closed a list of nodes.
enum End {
    OfText,
    OfBlock,
    AtElse(VecDeque<Token>),
}

struct Parser {
    parts: VecDeque<Part>,
    line: usize,
    depth: usize,
    loops: usize,
    /// Names in scope.
    variables: Vec<String>,
}

impl Parser {
    fn error(&self, text: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            text: text.into(),
        }
    }

    fn deeper(&mut self) -> Result<(), ParseError> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(self.error("nested too deeply"));
        }
        Ok(())
    }

    fn nodes(&mut self) -> Result<(Vec<Node>, End), ParseError> {
        let mut nodes = Vec::new();
        while let Some(part) = self.parts.pop_front() {
            let (line, tokens) = match part {
                Part::Text(text) => {
                    nodes.push(Node::Text(text));
                    continue;
                }
                Part::Action(line, tokens) => (line, tokens),
            };
            self.line = line;
            let mut tokens = VecDeque::from(tokens);
            let keyword = match tokens.front() {
                Some(Token::Word(word)) => word.clone(),
                _ => String::new(),
            };
            let kind = match keyword.as_str() {
                "if" => Kind::If,
                "with" => Kind::With,
                "range" => Kind::Range,
                "end" if tokens.len() == 1 => return Ok((nodes, End::OfBlock)),
                "else" => {
                    tokens.pop_front();
                    return Ok((nodes, End::AtElse(tokens)));
                }
                "break" | "continue" if tokens.len() == 1 => {
                    if self.loops == 0 {
                        return Err(self.error(format!("{{{{{keyword}}}}} outside {{{{range}}}}")));
                    }
                    nodes.push(if keyword == "break" {
                        Node::Break
                    } else {
                        Node::Continue
                    });
                    continue;
                }
                "end" | "break" | "continue" => {
                    return Err(self.error(format!("unexpected token after {keyword}")));
                }
                "define" | "template" | "block" => {
                    return Err(self.error(format!("{{{{{keyword}}}}} {UNSUPPORTED}")));
                }
                _ => {
                    nodes.push(Node::Print(self.pipe_to_end(&mut tokens, false)?));
                    continue;
                }
            };
            tokens.pop_front();
            nodes.push(self.block(kind, tokens)?);
        }
        Ok((nodes, End::OfText))
    }

    fn block(&mut self, kind: Kind, mut tokens: VecDeque<Token>) -> Result<Node, ParseError> {
        self.deeper()?;
        let in_scope = self.variables.len();
        let opened = self.line;
        let pipe = self.pipe_to_end(&mut tokens, kind == Kind::Range)?;
        self.loops += usize::from(kind == Kind::Range);
        let (body, end) = self.nodes()?;
        self.loops -= usize::from(kind == Kind::Range);
        let otherwise = match end {
            End::OfBlock => Vec::new(),
            End::OfText => {
                self.line = opened;
                return Err(self.error("unclosed action: {{end}} is missing"));
            }
            End::AtElse(mut rest) => match rest.pop_front() {
                None => match self.nodes()? {
                    (nodes, End::OfBlock) => nodes,
                    (_, End::AtElse(_)) => return Err(self.error("expected end; found {{else}}")),
                    (_, End::OfText) => return Err(self.error("unclosed action: {{end}} is missing")),
                },
                Some(Token::Word(word)) if word == "if" && kind == Kind::If => vec![self.block(kind, rest)?],
                Some(_) => return Err(self.error("unexpected token after else")),
            },
        };
        self.variables.truncate(in_scope);
        self.depth -= 1;
        Ok(Node::Block(kind, pipe, body, otherwise))
    }

    fn pipe_to_end(&mut self, tokens: &mut VecDeque<Token>, range: bool) -> Result<Pipe, ParseError> {
        let pipe = self.pipe(tokens, range)?;
        match tokens.front() {
            None => Ok(pipe),
            Some(token) => Err(self.error(format!("unexpected {token:?} in command"))),
        }
    }

    /// Up to the end or a closing parenthesis, which stays.
    fn pipe(&mut self, tokens: &mut VecDeque<Token>, range: bool) -> Result<Pipe, ParseError> {
        let (variables, declares) = self.variables(tokens, range)?;
        let mut commands = vec![self.command(tokens, true)?];
        while tokens.front() == Some(&Token::Sign("|")) {
            tokens.pop_front();
            commands.push(self.command(tokens, false)?);
        }
        if declares {
            self.variables.extend(variables.iter().cloned());
        }
        Ok(Pipe {
            variables,
            declares,
            commands,
        })
    }

    fn variables(
        &self,
        tokens: &mut VecDeque<Token>,
        range: bool,
    ) -> Result<(Vec<String>, bool), ParseError> {
        let sign = |i: usize| match tokens.get(i) {
            Some(Token::Sign(sign)) => *sign,
            _ => "",
        };
        let name = |i: usize| match tokens.get(i) {
            Some(Token::Variable(name)) if !name.is_empty() => Some(name.clone()),
            _ => None,
        };
        let (names, declares) = match (name(0), sign(1), name(2), sign(3)) {
            (Some(one), "=" | ":=", ..) => (vec![one], sign(1) == ":="),
            (Some(one), ",", Some(two), "=" | ":=") if range => (vec![one, two], sign(3) == ":="),
            _ => return Ok((Vec::new(), false)),
        };
        if let Some(unknown) = names.iter().find(|n| !declares && !self.variables.contains(n)) {
            return Err(self.error(format!("undefined variable \"${unknown}\"")));
        }
        tokens.drain(..names.len() * 2);
        Ok((names, declares))
    }

    fn command(&mut self, tokens: &mut VecDeque<Token>, first: bool) -> Result<Command, ParseError> {
        let function = match tokens.front() {
            Some(Token::Word(word)) => self.function(word)?,
            _ => None,
        };
        if function.is_some() {
            tokens.pop_front();
        }
        let mut args = Vec::new();
        while !matches!(tokens.front(), None | Some(Token::Sign("|" | ")"))) {
            args.push(self.term(tokens)?);
        }
        match (function, args.len()) {
            (None, 0) => Err(self.error("missing value for command")),
            (None, 1) if first => Ok(Command { function, args }),
            (None, 1) => Err(self.error("non executable command in pipeline")),
            (None, _) => Err(self.error("can't give argument to non-function")),
            (Some(_), _) => Ok(Command { function, args }),
        }
    }

    /// The function of that name; `None` for a constant.
    fn function(&self, word: &str) -> Result<Option<func::Function>, ParseError> {
        if matches!(word, "true" | "false" | "nil") {
            return Ok(None);
        }
        match func::Function::named(word) {
            Some(function) => Ok(Some(function)),
            None => Err(self.error(format!("function {word:?} not defined"))),
        }
    }

    fn term(&mut self, tokens: &mut VecDeque<Token>) -> Result<Term, ParseError> {
        let mut fields = Vec::new();
        let base = match tokens.pop_front() {
            Some(Token::Fields { names, .. }) => {
                fields = names;
                Base::Dot
            }
            Some(Token::Variable(name)) if self.variables.contains(&name) => Base::Variable(name),
            Some(Token::Variable(name)) => return Err(self.error(format!("undefined variable \"${name}\""))),
            Some(Token::Text(text)) => Base::Constant(Value::Text(text)),
            Some(Token::Int(n)) => Base::Constant(Value::Int(n)),
            Some(Token::Float(n)) => Base::Constant(Value::Float(n)),
            Some(Token::Word(word)) => match self.function(&word)? {
                Some(function) => Base::Pipe(Box::new(Pipe {
                    variables: Vec::new(),
                    declares: false,
                    commands: vec![Command {
                        function: Some(function),
                        args: Vec::new(),
                    }],
                })),
                None if word == "nil" => Base::Constant(Value::Nil),
                None => Base::Constant(Value::Bool(word == "true")),
            },
            Some(Token::Sign("(")) => {
                self.deeper()?;
                let pipe = self.pipe(tokens, false)?;
                if tokens.pop_front() != Some(Token::Sign(")")) {
                    return Err(self.error("unclosed left paren"));
                }
                self.depth -= 1;
                Base::Pipe(Box::new(pipe))
            }
            Some(token) => return Err(self.error(format!("unexpected {token:?} in operand"))),
            None => return Err(self.error("missing value for command")),
        };
        if let (Base::Variable(_) | Base::Pipe(_), Some(Token::Fields { names, glued: true })) =
            (&base, tokens.front())
        {
            fields = names.clone();
            tokens.pop_front();
        }
        Ok(Term { base, fields })
    }
}
