//! The one idea that makes templates safe to run: the engine parses the source, then every operator, literal
//! and loop that could make data without bound is replaced in the syntax tree by a call of a metered function
//! (`ops.rs`), and only that tree is compiled. Constant folding, which happens in the compiler, therefore meets
//! no operators either. Statements that a chat template has no use for are refused here.

use minijinja::machinery::Span;
use minijinja::machinery::ast::{self, BinOpKind, CallArg, CompareOpKind, Expr, Spanned, Stmt};
use minijinja::{Error, ErrorKind, Value};

use super::ops;

/// Rewrites a parsed template; `depth` is the nesting it may have.
pub(super) fn template<'a>(root: &Stmt<'a>, depth: usize) -> Result<Stmt<'a>, Error> {
    let Stmt::Template(template) = root else {
        return Err(refuse("the source is not a template", None));
    };
    let children = stmts(&template.children, depth)?;
    Ok(Stmt::Template(Spanned::new(ast::Template { children }, template.span())))
}

fn refuse(what: &str, span: Option<Span>) -> Error {
    let at = span.map(|span| format!("line {}: ", span.start_line)).unwrap_or_default();
    Error::new(ErrorKind::SyntaxError, format!("{at}{what}"))
}

fn deeper(depth: usize, span: Span) -> Result<usize, Error> {
    depth.checked_sub(1).ok_or_else(|| refuse("the template is nested too deeply", Some(span)))
}

fn call_stmt<'a>(name: &'a str, args: Vec<Expr<'a>>, span: Span) -> Stmt<'a> {
    Stmt::Do(Spanned::new(ast::Do { call: call_node(name, args, span) }, span))
}

fn call<'a>(name: &'a str, args: Vec<Expr<'a>>, span: Span) -> Expr<'a> {
    Expr::Call(call_node(name, args, span))
}

fn call_node<'a>(name: &'a str, args: Vec<Expr<'a>>, span: Span) -> Spanned<ast::Call<'a>> {
    let args = args.into_iter().map(CallArg::Pos).collect();
    Spanned::new(ast::Call { expr: variable(name, span), args }, span)
}

fn variable(id: &str, span: Span) -> Expr<'_> {
    Expr::Var(Spanned::new(ast::Var { id }, span))
}

fn constant<'a>(value: impl Into<Value>, span: Span) -> Expr<'a> {
    Expr::Const(Spanned::new(ast::Const { value: value.into() }, span))
}

fn stmts<'a>(list: &[Stmt<'a>], depth: usize) -> Result<Vec<Stmt<'a>>, Error> {
    let mut out = Vec::with_capacity(list.len());
    for item in list {
        stmt(item, depth, &mut out)?;
    }
    Ok(out)
}

fn stmt<'a>(item: &Stmt<'a>, depth: usize, out: &mut Vec<Stmt<'a>>) -> Result<(), Error> {
    let new = match item {
        Stmt::Template(node) => {
            let children = stmts(&node.children, deeper(depth, node.span())?)?;
            Stmt::Template(Spanned::new(ast::Template { children }, node.span()))
        }
        Stmt::EmitExpr(node) => {
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: expr(&node.expr, depth)? }, node.span()))
        }
        // As an expression, so that the metered formatter writes it: raw text inside a loop is data too.
        Stmt::EmitRaw(node) => {
            Stmt::EmitExpr(Spanned::new(ast::EmitExpr { expr: constant(node.raw, node.span()) }, node.span()))
        }
        Stmt::ForLoop(node) => for_loop(node, deeper(depth, node.span())?)?,
        Stmt::IfCond(node) => {
            let depth = deeper(depth, node.span())?;
            let cond = ast::IfCond {
                expr: expr(&node.expr, depth)?,
                true_body: stmts(&node.true_body, depth)?,
                false_body: stmts(&node.false_body, depth)?,
            };
            Stmt::IfCond(Spanned::new(cond, node.span()))
        }
        Stmt::WithBlock(node) => {
            let depth = deeper(depth, node.span())?;
            let assign = |(name, value): &(Expr<'a>, Expr<'a>)| Ok((target(name)?, expr(value, depth)?));
            let assignments = node.assignments.iter().map(assign).collect::<Result<_, Error>>()?;
            let block = ast::WithBlock { assignments, body: stmts(&node.body, depth)? };
            Stmt::WithBlock(Spanned::new(block, node.span()))
        }
        Stmt::Set(node) => set(node, depth)?,
        Stmt::SetBlock(node) => return set_block(node, deeper(depth, node.span())?, out),
        Stmt::FilterBlock(node) => {
            let depth = deeper(depth, node.span())?;
            let block =
                ast::FilterBlock { filter: expr(&node.filter, depth)?, body: stmts(&node.body, depth)? };
            Stmt::FilterBlock(Spanned::new(block, node.span()))
        }
        Stmt::Macro(node) => {
            // Each run of the statement keeps a closure until the end of the rendering.
            out.push(call_stmt(ops::CHARGE, Vec::new(), node.span()));
            Stmt::Macro(macro_node(node, deeper(depth, node.span())?)?)
        }
        Stmt::CallBlock(node) => {
            let depth = deeper(depth, node.span())?;
            out.push(call_stmt(ops::CHARGE, Vec::new(), node.span()));
            let block = ast::CallBlock {
                call: call_of(&node.call, depth)?,
                macro_decl: macro_node(&node.macro_decl, depth)?,
            };
            Stmt::CallBlock(Spanned::new(block, node.span()))
        }
        Stmt::Continue(node) => Stmt::Continue(Spanned::new(ast::Continue, node.span())),
        Stmt::Break(node) => Stmt::Break(Spanned::new(ast::Break, node.span())),
        Stmt::Do(node) => Stmt::Do(Spanned::new(ast::Do { call: call_of(&node.call, depth)? }, node.span())),
        Stmt::AutoEscape(node) => {
            return Err(refuse("autoescape is not supported in chat templates", Some(node.span())));
        }
        Stmt::Block(node) => {
            return Err(refuse("blocks are not supported in chat templates", Some(node.span())));
        }
        Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
            return Err(refuse("a chat template cannot load other templates", None));
        }
    };
    out.push(new);
    Ok(())
}

fn for_loop<'a>(node: &Spanned<ast::ForLoop<'a>>, depth: usize) -> Result<Stmt<'a>, Error> {
    let iter = call(ops::ITER, vec![expr(&node.iter, depth)?], node.iter.span());
    let filter_expr = node.filter_expr.as_ref().map(|filter| expr(filter, depth)).transpose()?;
    let new = ast::ForLoop {
        target: target(&node.target)?,
        iter,
        filter_expr,
        recursive: node.recursive,
        body: stmts(&node.body, depth)?,
        else_body: stmts(&node.else_body, depth)?,
    };
    Ok(Stmt::ForLoop(Spanned::new(new, node.span())))
}

/// The left side of an assignment: a name, or names in a (nested) list.
fn target<'a>(left: &Expr<'a>) -> Result<Expr<'a>, Error> {
    match left {
        Expr::Var(node) => Ok(variable(node.id, node.span())),
        Expr::List(node) => {
            let items = node.items.iter().map(target).collect::<Result<_, _>>()?;
            Ok(Expr::List(Spanned::new(ast::List { items }, node.span())))
        }
        other => Err(refuse("only names can be assigned here", Some(other.span()))),
    }
}

fn set<'a>(node: &Spanned<ast::Set<'a>>, depth: usize) -> Result<Stmt<'a>, Error> {
    let value = expr(&node.expr, depth)?;
    match &node.target {
        Expr::GetAttr(place) => {
            let object = expr(&place.expr, depth)?;
            Ok(call_stmt(
                ops::SET_ATTRIBUTE,
                vec![object, constant(place.name, node.span()), value],
                node.span(),
            ))
        }
        left => Ok(Stmt::Set(Spanned::new(ast::Set { target: target(left)?, expr: value }, node.span()))),
    }
}

/// A captured block; one that goes into a namespace takes a detour over a variable of its own.
fn set_block<'a>(
    node: &Spanned<ast::SetBlock<'a>>,
    depth: usize,
    out: &mut Vec<Stmt<'a>>,
) -> Result<(), Error> {
    let filter = node.filter.as_ref().map(|filter| expr(filter, depth)).transpose()?;
    let body = stmts(&node.body, depth)?;
    let span = node.span();
    let (left, after) = match &node.target {
        Expr::GetAttr(place) => {
            let args =
                vec![expr(&place.expr, depth)?, constant(place.name, span), variable(ops::CAPTURE, span)];
            (variable(ops::CAPTURE, span), Some(call_stmt(ops::SET_ATTRIBUTE, args, span)))
        }
        left => (target(left)?, None),
    };
    out.push(Stmt::SetBlock(Spanned::new(ast::SetBlock { target: left, filter, body }, span)));
    out.extend(after);
    Ok(())
}

fn macro_node<'a>(node: &Spanned<ast::Macro<'a>>, depth: usize) -> Result<Spanned<ast::Macro<'a>>, Error> {
    let new = ast::Macro {
        name: node.name,
        args: node.args.iter().map(target).collect::<Result<_, _>>()?,
        defaults: exprs(&node.defaults, depth)?,
        body: stmts(&node.body, depth)?,
    };
    Ok(Spanned::new(new, node.span()))
}

fn exprs<'a>(list: &[Expr<'a>], depth: usize) -> Result<Vec<Expr<'a>>, Error> {
    list.iter().map(|item| expr(item, depth)).collect()
}

fn expr<'a>(item: &Expr<'a>, depth: usize) -> Result<Expr<'a>, Error> {
    let span = item.span();
    let depth = deeper(depth, span)?;
    Ok(match item {
        Expr::Var(node) if node.id == "self" => return Err(refuse("self is not supported", Some(span))),
        Expr::Var(node) => variable(node.id, span),
        Expr::Const(node) => constant(node.value.clone(), span),
        Expr::Slice(node) => {
            let part = |part: &Option<Expr<'a>>| match part {
                Some(part) => expr(part, depth),
                None => Ok(constant((), span)),
            };
            let args =
                vec![expr(&node.expr, depth)?, part(&node.start)?, part(&node.stop)?, part(&node.step)?];
            call(ops::SLICE, args, span)
        }
        Expr::UnaryOp(node) => {
            let not = matches!(node.op, ast::UnaryOpKind::Not);
            let op = if not { ast::UnaryOpKind::Not } else { ast::UnaryOpKind::Neg };
            Expr::UnaryOp(Spanned::new(ast::UnaryOp { op, expr: expr(&node.expr, depth)? }, span))
        }
        Expr::BinOp(node) => bin_op(node, depth)?,
        Expr::Compare(node) => {
            let mut args = vec![expr(&node.expr, depth)?];
            for operation in &node.ops {
                args.push(constant(comparison(operation.op), span));
                args.push(expr(&operation.expr, depth)?);
            }
            call(ops::CHAIN, args, span)
        }
        Expr::IfExpr(node) => {
            let new = ast::IfExpr {
                test_expr: expr(&node.test_expr, depth)?,
                true_expr: expr(&node.true_expr, depth)?,
                false_expr: node.false_expr.as_ref().map(|value| expr(value, depth)).transpose()?,
            };
            Expr::IfExpr(Spanned::new(new, span))
        }
        Expr::Filter(node) => {
            let inner = node.expr.as_ref().map(|value| expr(value, depth)).transpose()?;
            let new = ast::Filter { name: node.name, expr: inner, args: args(&node.args, depth, span)? };
            Expr::Filter(Spanned::new(new, span))
        }
        Expr::Test(node) => {
            let args = args(&node.args, depth, span)?;
            Expr::Test(Spanned::new(
                ast::Test { name: node.name, expr: expr(&node.expr, depth)?, args },
                span,
            ))
        }
        Expr::GetAttr(node) => Expr::GetAttr(Spanned::new(
            ast::GetAttr { expr: expr(&node.expr, depth)?, name: node.name },
            span,
        )),
        Expr::GetItem(node) => {
            call(ops::ITEM, vec![expr(&node.expr, depth)?, expr(&node.subscript_expr, depth)?], span)
        }
        Expr::Call(node) => Expr::Call(call_of(node, depth)?),
        Expr::List(node) => call(ops::LIST, exprs(&node.items, depth)?, span),
        Expr::Tuple(node) => call(ops::TUPLE, exprs(&node.items, depth)?, span),
        Expr::Map(node) => {
            let mut pairs = Vec::with_capacity(2 * node.keys.len());
            for (key, value) in node.keys.iter().zip(&node.values) {
                pairs.push(expr(key, depth)?);
                pairs.push(expr(value, depth)?);
            }
            call(ops::MAP, pairs, span)
        }
    })
}

fn bin_op<'a>(node: &Spanned<ast::BinOp<'a>>, depth: usize) -> Result<Expr<'a>, Error> {
    let (left, right) = (expr(&node.left, depth)?, expr(&node.right, depth)?);
    let name = match node.op {
        // Short-circuiting, and makes nothing.
        BinOpKind::ScAnd | BinOpKind::ScOr => {
            return Ok(Expr::BinOp(Spanned::new(ast::BinOp { op: node.op, left, right }, node.span())));
        }
        BinOpKind::Eq => ops::EQ,
        BinOpKind::Ne => ops::NE,
        BinOpKind::Lt => ops::LT,
        BinOpKind::Lte => ops::LE,
        BinOpKind::Gt => ops::GT,
        BinOpKind::Gte => ops::GE,
        BinOpKind::Add => ops::ADD,
        BinOpKind::Sub => ops::SUB,
        BinOpKind::Mul => ops::MUL,
        BinOpKind::Div => ops::DIV,
        BinOpKind::FloorDiv => ops::FLOOR_DIV,
        BinOpKind::Rem => ops::REM,
        BinOpKind::Pow => ops::POW,
        BinOpKind::Concat => ops::CONCAT,
        BinOpKind::In => ops::IN,
    };
    Ok(call(name, vec![left, right], node.span()))
}

fn comparison(op: CompareOpKind) -> &'static str {
    match op {
        CompareOpKind::Eq => ops::EQ,
        CompareOpKind::Ne => ops::NE,
        CompareOpKind::Lt => ops::LT,
        CompareOpKind::Lte => ops::LE,
        CompareOpKind::Gt => ops::GT,
        CompareOpKind::Gte => ops::GE,
        CompareOpKind::In => ops::IN,
        CompareOpKind::NotIn => ops::NOT_IN,
    }
}

fn call_of<'a>(node: &Spanned<ast::Call<'a>>, depth: usize) -> Result<Spanned<ast::Call<'a>>, Error> {
    let span = node.span();
    let mut args = args(&node.args, depth, span)?;
    let callee = match &node.expr {
        Expr::Var(name) if name.id == "super" => return Err(refuse("super() is not supported", Some(span))),
        // The recursion of a loop: its argument is iterated like that of a `for`.
        Expr::Var(name) if name.id == "loop" => {
            let iterated = |arg| match arg {
                CallArg::Pos(value) => CallArg::Pos(call(ops::ITER, vec![value], span)),
                other => other,
            };
            args = args.into_iter().map(iterated).collect();
            variable(name.id, name.span())
        }
        // `loop.changed` compares without bound and `loop.cycle()` divides by its argument count.
        Expr::GetAttr(method) if method.name == "changed" => {
            return Err(refuse("loop.changed is not supported in chat templates", Some(span)));
        }
        Expr::GetAttr(method) if method.name == "cycle" && args.is_empty() => {
            return Err(refuse("cycle needs at least one argument", Some(span)));
        }
        other => expr(other, depth)?,
    };
    Ok(Spanned::new(ast::Call { expr: callee, args }, span))
}

fn args<'a>(list: &[CallArg<'a>], depth: usize, span: Span) -> Result<Vec<CallArg<'a>>, Error> {
    let arg = |arg: &CallArg<'a>| match arg {
        CallArg::Pos(value) => Ok(CallArg::Pos(expr(value, depth)?)),
        CallArg::Kwarg(name, value) => Ok(CallArg::Kwarg(name, expr(value, depth)?)),
        // They copy whole lists onto the engine's stack.
        CallArg::PosSplat(_) | CallArg::KwargSplat(_) => {
            Err(refuse("*args and **kwargs are not supported in chat templates", Some(span)))
        }
    };
    list.iter().map(arg).collect()
}
