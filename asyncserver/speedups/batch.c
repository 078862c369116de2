/* Batch: runs the handlers of a batch, one after the other, until no datagram is left or one of them waits.
 *
 * `InlineRunner._run_handlers()` is the definition. Its task awaits `batch.run(handler)`, an iterator: each item is what
 * a handler waits for, and goes on to the task. When the batch is over it ends without a value, and may be run again.
 * Where the task has to end, `over` is true:
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

#define BATCH_OBJECTS(X)                                                                                               \
    X(runner, ) X(take, ) X(cancelling, ) X(context, ) X(awaited, ) X(handler, ) X(datagram, ) X(coroutine, )

typedef struct {
    PyObject_HEAD
    BATCH_OBJECTS(FIELD) /* the last is of the handler that runs, or waits; the first see batch_new() */
    char over;
} Batch;

/* The next datagram, or NULL: with an exception, or because there is none. */
static PyObject *next_datagram(Batch *self) {
    Ring *runner = (Ring *)self->runner;
    while (runner->held && runner->left && runner->watching && runner->remaining == Py_None) {
        runner->left--;
        PyObject *datagram = ring_receive(runner, NULL);
        if (datagram)
            runner->received++;
        if (datagram || !PyErr_ExceptionMatches(runner->not_for_us))
            return datagram;
        PyErr_Clear();
    }
    if (!runner->left || !runner->watching)
        return NULL;
    PyObject *datagram = PyObject_CallNoArgs(self->take); /* it knows what errors mean, and drains */
    if (datagram == Py_None)
        Py_CLEAR(datagram);
    return datagram;
}

/* A StopIteration of the handler's would be ours, and end the batch: as PEP 479 has it for generators. */
static void replace_stop_iteration(void) {
    PyObject *type, *stop, *traceback;
    PyErr_Fetch(&type, &stop, &traceback);
    PyErr_NormalizeException(&type, &stop, &traceback);
    if (traceback)
        PyException_SetTraceback(stop, traceback);
    PyObject *error = PyObject_CallFunction(PyExc_RuntimeError, "s", "the handler raised StopIteration");
    if (error) {
        PyException_SetCause(error, Py_NewRef(stop));
        PyErr_SetObject(PyExc_RuntimeError, error);
    }
    Py_XDECREF(error);
    Py_DECREF(type);
    Py_DECREF(stop);
    Py_XDECREF(traceback);
}

/* Begin the next handler; false with an exception, or because there is no datagram. */
static int begin(Batch *self) {
    Py_CLEAR(self->datagram);
    self->datagram = next_datagram(self);
    if (!self->datagram)
        return 0;
    Py_XSETREF(((Ring *)self->runner)->current, Py_NewRef(self->datagram));
    self->coroutine = PyObject_CallOneArg(self->handler, self->datagram);
    /* Python shall await, or refuse, what is no coroutine, or one that others have as well. */
    if (self->coroutine && (!PyCoro_CheckExact(self->coroutine) || Py_REFCNT(self->coroutine) > 1))
        Py_SETREF(self->coroutine, PyObject_CallOneArg(self->awaited, self->coroutine));
    if (!self->coroutine && PyErr_ExceptionMatches(PyExc_StopIteration))
        replace_stop_iteration();
    return self->coroutine != NULL;
}

/* Whether the next handler could see that there was one before; -1 with an exception. */
static int has_left_traces(Batch *self) {
    PyObject *cancelling = PyObject_CallNoArgs(self->cancelling);
    int any = cancelling ? PyObject_IsTrue(cancelling) : -1;
    Py_XDECREF(cancelling);
    if (any)
        return any;
    PyObject *context = PyContext_CopyCurrent();
    any = context ? PyObject_RichCompareBool(context, self->context, Py_NE) : -1;
    Py_XDECREF(context);
    return any;
}

/* A handler has returned: whether the task may run the next one. If not, `over` is set, or an exception, or both. */
static int goes_on(Batch *self, PyObject *result) {
    Ring *runner = (Ring *)self->runner;
    if (runner->current != self->datagram) { /* the task is the handler's */
        self->over = 1;
        /* An instance: of a tuple PyErr_SetObject() would make several arguments. */
        PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, result);
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
    while (self->runner && (self->coroutine || begin(self))) {
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

static PyObject *batch_run(Batch *self, PyObject *handler) {
    Py_XSETREF(self->handler, Py_NewRef(handler));
    return Py_NewRef(self);
}

/* For a handler that waits, and has the task: what it returns or raises now is the end of that. */
static PyObject *batch_throw(Batch *self, PyObject *args) {
    PyObject *throw = PyObject_GetAttrString(self->coroutine ? self->coroutine : Py_None, "throw");
    PyObject *result = throw ? PyObject_CallObject(throw, args) : NULL;
    Py_XDECREF(throw);
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

/* Batch(runner, take, cancelling, context, awaited), for one task of the runner's. */
static PyObject *batch_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names)) {
    PyObject *runner, *take, *cancelling, *context, *awaited;
    if (!PyArg_ParseTuple(args, "OOOOO", &runner, &take, &cancelling, &context, &awaited))
        return NULL;
    State *state = PyType_GetModuleState(type);
    if (!state->ring || !PyObject_TypeCheck(runner, state->ring))
        return PyErr_Format(PyExc_TypeError, "no Ring: %R", runner);
    Batch *self = (Batch *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->runner = Py_NewRef(runner);
    self->take = Py_NewRef(take);             /* the runner's _take() */
    self->cancelling = Py_NewRef(cancelling); /* the task's method */
    self->context = Py_NewRef(context);       /* as it is while nobody has set anything */
    self->awaited = Py_NewRef(awaited);       /* makes a coroutine of what can be awaited */
    self->handler = Py_NewRef(Py_None);
    return (PyObject *)self;
}

LIFE(Batch, batch, BATCH_OBJECTS)

static PyMethodDef methods[] = {
    {"run", (PyCFunction)batch_run, METH_O, NULL},
    {"throw", (PyCFunction)batch_throw, METH_VARARGS, NULL},
    {0},
};

static PyMemberDef batch_members[] = {
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
    SLOTS_WITH(batch, batch_new, "Runs the handlers of a batch."), {Py_tp_iter, PyObject_SelfIter}, {Py_am_await, PyObject_SelfIter},
    {Py_tp_iternext, batch_iternext}, {Py_tp_methods, methods}, {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec batch_spec = {"asyncserver.datagrams.ring_runner.Batch", sizeof(Batch), 0,
                          Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, slots}; /* no base: see batch_new() */
