/* Batch: runs the handlers of a batch, one after the other, until no datagram is left or one of them waits.
 *
 * `InlineRunner._run_handlers()` is the definition. Its task awaits the batch, an iterator: each item is what a handler
 * waits for, and goes on to the task. When the batch is over it ends without a value, and may be awaited again. Where
 * the task has to end, `over` is true:
 *
 *     the handler has waited, and got the task           the value is what it returned
 *     it left something that the next one could see      the value is None
 *
 * An error is that of the handler of `datagram`; it has not waited if that is still the runner's `current`.
 *
 * An iterator that is awaited may end with NULL and no exception, which stands for None: SEND in CPython's
 * Python/bytecodes.c, _PyGen_FetchStopIterationValue() in Objects/genobject.c. Without `am_send` SEND calls
 * `tp_iternext`, in all versions.
 */
#include "datagrams.h"

#define BATCH_OBJECTS(X) X(handler, ) X(runner, ) X(cancelling, ) X(context, ) X(datagram, ) X(coroutine, )

typedef struct {
    PyObject_HEAD
    BATCH_OBJECTS(FIELD) /* `datagram` and `coroutine` are of the handler that runs, or waits */
    char over;
} Batch;

/* The next datagram, or NULL: with an exception, or because there is none. */
static PyObject *next_datagram(State *state, Ring *runner) {
    while (runner->held && runner->left && runner->remaining == Py_None) {
        runner->left--;
        PyObject *datagram = ring_receive(runner, NULL);
        if (datagram)
            runner->received++;
        if (datagram || !PyErr_ExceptionMatches(runner->not_for_us))
            return datagram;
        PyErr_Clear();
    }
    if (!runner->left)
        return NULL;
    PyObject *datagram = PyObject_CallMethodNoArgs((PyObject *)runner, N(_take)); /* it knows errors, and drains */
    if (datagram == Py_None)
        Py_CLEAR(datagram);
    return datagram;
}

/* Begin the next handler; false with an exception, or because there is no datagram. */
static int begin(State *state, Batch *self) {
    Ring *runner = (Ring *)self->runner;
    Py_XSETREF(self->datagram, next_datagram(state, runner));
    if (!self->datagram)
        return 0;
    Py_XSETREF(runner->current, Py_NewRef(self->datagram));
    PyObject *made = PyObject_CallOneArg(self->handler, self->datagram);
    /* Python shall await, or refuse, what is no coroutine, or one that others have as well. And raise a StopIteration
     * of the handler's, which from here would end the batch: PEP 479. */
    if (!made && PyErr_ExceptionMatches(PyExc_StopIteration))
        made = PyErr_GetRaisedException();
    if (made && (!PyCoro_CheckExact(made) || Py_REFCNT(made) > 1))
        Py_SETREF(made, PyObject_CallMethodOneArg(self->runner, N(_awaited), made));
    self->coroutine = made;
    return made != NULL;
}

/* Whether the next handler could see that there was one before; -1 with an exception. */
static int has_left_traces(Batch *self) {
    PyObject *asked = PyObject_CallNoArgs(self->cancelling);
    PyObject *context = asked ? PyContext_CopyCurrent() : NULL;
    int any = context ? PyObject_IsTrue(asked) : -1;
    if (!any)
        any = PyObject_RichCompareBool(context, self->context, Py_NE);
    Py_XDECREF(asked);
    Py_XDECREF(context);
    return any;
}

/* A handler has returned: whether the task may run the next one. If not, `over` is set, or an exception, or both. */
static int goes_on(Batch *self, PyObject *result) {
    Ring *runner = (Ring *)self->runner;
    if (runner->current != self->datagram) { /* the task is the handler's */
        self->over = 1;
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result); /* with `args`, also of a tuple */
        if (stop)
            PyErr_SetObject(PyExc_StopIteration, stop);
        Py_XDECREF(stop);
        return 0;
    }
    Py_XSETREF(runner->current, Py_NewRef(Py_None));
    PyObject *pair = PyTuple_Pack(2, self->datagram, result);
    int failed = !pair || !runner->answers || PyList_Append(runner->answers, pair);
    Py_XDECREF(pair);
    self->over = !failed && has_left_traces(self);
    return !failed && !self->over;
}

static PyObject *batch_iternext(Batch *self) {
    State *state = PyType_GetModuleState(Py_TYPE(self));
    while (state && self->handler && (self->coroutine || begin(state, self))) {
        PyObject *result = NULL, *coroutine = Py_NewRef(self->coroutine);
        PySendResult how = PyIter_Send(coroutine, Py_None, &result);
        Py_DECREF(coroutine);
        if (how == PYGEN_NEXT)
            return result;
        Py_CLEAR(self->coroutine);
        if (how == PYGEN_ERROR)
            return NULL;
        int more = goes_on(self, result);
        Py_DECREF(result);
        if (!more)
            return NULL;
    }
    return NULL;
}

/* For a handler that waits, and has the task: what it returns or raises now is the end of that. */
static PyObject *batch_throw(Batch *self, PyObject *exc) {
    PyObject *result = PyObject_CallMethod(self->coroutine ? self->coroutine : Py_None, "throw", "(O)", exc);
    if (!result) {
        Py_CLEAR(self->coroutine);
        self->over = 1;
    }
    return result;
}

/* `cr_frame` and `cr_await` are the handler's, for asyncio.capture_call_graph(): Lib/asyncio/graph.py. */
static PyObject *of_coroutine(Batch *self, void *name) {
    return self->coroutine ? PyObject_GetAttrString(self->coroutine, name) : Py_NewRef(Py_None);
}

/* Batch(runner, cancelling, context), the last two of its task; the context is as while nobody has set anything. */
static PyObject *batch_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names)) {
    State *state = PyType_GetModuleState(type);
    PyObject *runner, *cancelling, *context;
    if (!PyArg_ParseTuple(args, "O!OO", state->ring, &runner, &cancelling, &context))
        return NULL;
    Batch *self = (Batch *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->runner = Py_NewRef(runner);
    self->cancelling = Py_NewRef(cancelling);
    self->context = Py_NewRef(context);
    return (PyObject *)self;
}

LIFE(Batch, batch, BATCH_OBJECTS)

static PyMethodDef methods[] = {{"throw", (PyCFunction)batch_throw, METH_O, NULL}, {0}};

static PyMemberDef batch_members[] = {
    {"handler", T_OBJECT_EX, offsetof(Batch, handler), 0, NULL},
    {"datagram", T_OBJECT, offsetof(Batch, datagram), READONLY, NULL},
    {"over", T_BOOL, offsetof(Batch, over), READONLY, NULL},
    {0},
};

static PyGetSetDef getset[] = {
    {"cr_frame", (getter)of_coroutine, NULL, NULL, "cr_frame"},
    {"cr_await", (getter)of_coroutine, NULL, NULL, "cr_await"},
    {0},
};

static PyType_Slot slots[] = {
    SLOTS_WITH(batch, batch_new, "Runs the handlers of a batch."), {Py_am_await, PyObject_SelfIter},
    {Py_tp_iter, PyObject_SelfIter}, {Py_tp_iternext, batch_iternext}, {Py_tp_methods, methods},
    {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec batch_spec = {"asyncserver.datagrams.ring_runner.Batch", sizeof(Batch), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots}; /* no base: see batch_new() */
