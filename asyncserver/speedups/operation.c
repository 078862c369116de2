/* Operation: what `receive()`, `send()` and their kin return: a coroutine, as far as tasks can tell.
 *
 * Theory of operation. A step does the work in C, and says what the task is to do: wait (for the connection's Waiter),
 * pause (let others run), take the result. What is not usual goes to the Python function, called with the arguments of
 * the first call; from then on its coroutine, the delegate, is all there is.
 *
 *     FRESH -> WAITING <-> PAUSED -> DONE, and from each of them -> DELEGATED -> DONE
 *
 * Whoever leaves a wait by another way than a wake-up (throw, close, the end of the object) takes the wake-up back: a
 * dead task must not be woken.
 *
 * How results reach the awaiting coroutine: from CPython 3.15 on, and from a task, by `am_send`. Before, ceval's SEND
 * calls `tp_iternext` of whatever is no generator (Python/bytecodes.c), where a result is a StopIteration's value.
 */
#include "speedups.h"

PyObject *operation_new(State *state, Step *step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t max) {
    Operation *self = (Operation *)PyType_GenericAlloc((PyTypeObject *)state->operation, 0);
    if (self == NULL)
        return NULL;
    self->step = step;
    self->pure = Py_NewRef(pure);
    self->max = max;
    self->warns = 1;
    for (; self->nargs < nargs; self->nargs++)
        self->args[self->nargs] = Py_NewRef(args[self->nargs]);
    return (PyObject *)self;
}

/* Wait no more. */
static void leave(Operation *self) {
    if (self->waiter != NULL)
        Py_XSETREF(self->waiter->wakeup, Py_NewRef(Py_None));
    Py_CLEAR(self->waiter);
}

LIFE(Operation, objects, OPERATION_OBJECTS, leave(self)) /* but no tp_clear: it warns with its function's name */

static void finish(Operation *self) {
    self->state = DONE; /* first: what a wake-up held may act when it is let go */
    leave(self);
    Py_CLEAR(self->delegate);
}

/* __name__ and __qualname__ are the function's. */
static PyObject *get_name(Operation *self, void *attribute) {
    return PyObject_GetAttrString(self->pure, attribute);
}

static void operation_dealloc(Operation *self) {
    PyObject_GC_UnTrack(self);
    if (self->state == FRESH && self->warns) {
        PyObject *type, *value, *traceback;
        PyErr_Fetch(&type, &value, &traceback);
        PyObject *name = get_name(self, "__qualname__");
        if (name == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%U' was never awaited", name))
            PyErr_WriteUnraisable(self->pure);
        Py_XDECREF(name);
        PyErr_Restore(type, value, traceback);
    }
    objects_dealloc(self);
}

/* -- what steps end with */

PySendResult operation_wait(Operation *self, Waiter *waiter, PyObject **result) {
    waiter->blocking = 1;
    self->state = WAITING;
    self->waiter = (Waiter *)Py_NewRef(waiter);
    *result = Py_NewRef(waiter);
    return PYGEN_NEXT;
}

/* Let others run. With a waiter they may not do the same meanwhile: `bool` stands there for a task, and does nothing. */
PySendResult operation_pause(Operation *self, Waiter *waiter, PyObject **result) {
    if (waiter != NULL)
        Py_XSETREF(waiter->wakeup, Py_NewRef(&PyBool_Type));
    self->state = waiter != NULL ? WAITING : PAUSED;
    self->waiter = (Waiter *)Py_XNewRef(waiter);
    *result = Py_NewRef(Py_None);
    return PYGEN_NEXT;
}

/* Takes the reference; NULL is an error. */
PySendResult operation_return(Operation *self, PyObject *value, PyObject **result) {
    self->state = DONE;
    *result = value;
    return value == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

static PySendResult from_delegate(Operation *self, PyObject *arg, PyObject **result) {
    PySendResult how = PyIter_Send(self->delegate, arg, result);
    if (how != PYGEN_NEXT)
        finish(self);
    return how;
}

/* Let a coroutine or a generator do the rest; takes the reference, NULL is an error. */
PySendResult operation_delegate(Operation *self, PyObject *awaitable, PyObject **result) {
    if (awaitable == NULL)
        return operation_return(self, NULL, result);
    self->delegate = awaitable;
    self->state = DELEGATED;
    return from_delegate(self, Py_None, result);
}

PySendResult operation_leave_to_pure(Operation *self, PyObject **result) {
    return operation_delegate(self, call_pure(self->pure, self->args, self->nargs), result);
}

/* An exception is set. If it says that the connection is broken, the Python function meets the states for that. */
PySendResult operation_raised(State *state, Operation *self, PyObject **result) {
    if (connection_broke(state, (Connection *)self->args[0]))
        return operation_return(self, NULL, result);
    return operation_leave_to_pure(self, result);
}

/* -- as a coroutine */

/* Refuse what is over, or runs: a state's function, a signal's handler may get at it. */
static int is_refused(Operation *self) {
    if (self->running)
        PyErr_SetString(PyExc_ValueError, "coroutine already executing");
    else if (self->state == DONE)
        PyErr_SetString(PyExc_RuntimeError, "cannot reuse already awaited coroutine");
    return self->running || self->state == DONE;
}

static PySendResult operation_am_send(Operation *self, PyObject *arg, PyObject **result) {
    State *state = PyType_GetModuleState(Py_TYPE(self));
    *result = NULL;
    if (state == NULL || is_refused(self))
        return PYGEN_ERROR;
    self->running = 1;
    if (state->stop != NULL && Py_REFCNT(state->stop) == 1)
        Py_CLEAR(((PyStopIterationObject *)state->stop)->value); /* the last result need not stay */
    leave(self);
    PySendResult how = self->delegate == NULL ? self->step(state, self, self->state, result)
                                              : from_delegate(self, arg, result);
    self->running = 0;
    return how;
}

/* Raise StopIteration(value). Making one each time costs ten times as much, so it is used again, while nobody else has
 * it and nobody has raised it in Python. */
static void stop_with(State *state, PyObject *value) {
    PyStopIterationObject *stop = (PyStopIterationObject *)state->stop;
    if (stop == NULL || Py_REFCNT(stop) != 1 || stop->traceback != NULL || stop->context != NULL) {
        stop = (PyStopIterationObject *)PyObject_CallNoArgs(PyExc_StopIteration);
        Py_XSETREF(state->stop, (PyObject *)stop);
    }
    if (stop != NULL) {
        PyErr_Restore(Py_NewRef(PyExc_StopIteration), Py_NewRef(stop), NULL);
        Py_XSETREF(stop->value, Py_NewRef(value));
    }
}

static PyObject *operation_iternext(Operation *self) {
    PyObject *result;
    if (operation_am_send(self, Py_None, &result) == PYGEN_RETURN) {
        stop_with(PyType_GetModuleState(Py_TYPE(self)), result);
        Py_CLEAR(result);
    }
    return result;
}

static PyObject *operation_send(Operation *self, PyObject *arg) { /* who calls it may look at `args` */
    PyObject *result;
    if (operation_am_send(self, arg, &result) == PYGEN_RETURN) {
        PyErr_SetObject(PyExc_StopIteration, result);
        Py_CLEAR(result);
    }
    return result;
}

static PyObject *operation_throw(Operation *self, PyObject *exc) {
    State *state = PyType_GetModuleState(Py_TYPE(self));
    if (state == NULL || is_refused(self))
        return NULL;
    if (self->delegate == NULL) {
        finish(self);
        int made = PyExceptionInstance_Check(exc);
        PyErr_SetObject(made ? (PyObject *)Py_TYPE(exc) : exc, made ? exc : NULL);
        return NULL;
    }
    self->running = 1;
    PyObject *result = PyObject_CallMethodOneArg(self->delegate, state->throw, exc);
    self->running = 0;
    if (result == NULL)
        finish(self);
    return result;
}

static PyObject *operation_close(Operation *self, PyObject *Py_UNUSED(ignored)) {
    State *state = PyType_GetModuleState(Py_TYPE(self));
    if (state == NULL || (self->state != DONE && is_refused(self)))
        return NULL;
    PyObject *delegate = Py_XNewRef(self->delegate);
    finish(self);
    PyObject *result = delegate == NULL ? Py_NewRef(Py_None) : PyObject_CallMethodNoArgs(delegate, state->close);
    Py_XDECREF(delegate);
    return result;
}

static PyObject *operation_await(Operation *self) {
    if (self->state == FRESH || self->state == DONE)
        return Py_NewRef(self);
    return PyErr_Format(PyExc_RuntimeError, "coroutine is being awaited already");
}

static PyGetSetDef getset[] = {
    {"__name__", (getter)get_name, NULL, NULL, "__name__"},
    {"__qualname__", (getter)get_name, NULL, NULL, "__qualname__"},
    {0},
};

static PyMethodDef methods[] = {
    {"send", (PyCFunction)operation_send, METH_O, NULL},
    {"throw", (PyCFunction)operation_throw, METH_O, NULL},
    {"close", (PyCFunction)operation_close, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot slots[] = {
    {Py_tp_traverse, objects_traverse}, {Py_tp_dealloc, operation_dealloc},
    {Py_am_await, operation_await}, {Py_am_send, operation_am_send},
    {Py_tp_iternext, operation_iternext}, {Py_tp_methods, methods}, {Py_tp_getset, getset}, {0, NULL},
};
PyType_Spec operation_spec = {
    "asyncserver.speedups.Operation", sizeof(Operation), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots,
};
