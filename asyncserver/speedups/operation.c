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
 * calls `tp_iternext` of whatever is no generator (Python/bytecodes.c), where NULL without an exception means None
 * (_PyGen_FetchStopIterationValue, Objects/genobject.c), and any other result is a StopIteration's value: stop_with().
 *
 * Operations come from a free list, as the awaitables of asynchronous generators do (async_gen_asend_dealloc in
 * Objects/genobject.c of CPython 3.11).
 */
#include "speedups.h"

static State *state_of(Operation *self) {
    return PyType_GetModuleState(Py_TYPE(self));
}

PyObject *operation_new(State *state, Step step, PyObject *pure, PyObject *const *args, Py_ssize_t nargs,
                        Py_ssize_t max) {
    Operation *self;
    if (state->free_count > 0)
        self = (Operation *)PyObject_Init((PyObject *)state->free[--state->free_count], state->operation);
    else if ((self = PyObject_GC_New(Operation, state->operation)) == NULL)
        return NULL;
    self->step = step;
    self->pure = Py_NewRef(pure);
    self->nargs = nargs;
    for (Py_ssize_t i = 0; i < nargs; i++)
        self->args[i] = Py_NewRef(args[i]);
    self->waiter = NULL;
    self->delegate = NULL;
    self->max = max;
    self->state = FRESH;
    self->running = 0;
    self->warns = 1;
    PyObject_GC_Track(self);
    return (PyObject *)self;
}

static int operation_traverse(Operation *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->pure);
    for (Py_ssize_t i = 0; i < self->nargs; i++)
        Py_VISIT(self->args[i]);
    Py_VISIT(self->waiter);
    Py_VISIT(self->delegate);
    return 0;
}

/* Be done, without being woken. */
static void operation_leave(Operation *self) {
    if (self->waiter != NULL && (self->state == WAITING || self->state == PAUSED))
        Py_CLEAR(self->waiter->wakeup);
    Py_CLEAR(self->waiter);
    self->state = DONE;
}

static int operation_clear(Operation *self) {
    operation_leave(self);
    Py_CLEAR(self->pure);
    for (Py_ssize_t i = 0; i < self->nargs; i++)
        Py_CLEAR(self->args[i]);
    Py_CLEAR(self->delegate);
    return 0;
}

/* __name__ and __qualname__ are the function's. */
static PyObject *operation_get_name(Operation *self, void *attribute) {
    return PyObject_GetAttrString(self->pure == NULL ? Py_None : self->pure, attribute);
}

static void warn_never_awaited(Operation *self) {
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *name = operation_get_name(self, "__qualname__");
    if (name == NULL || PyErr_WarnFormat(PyExc_RuntimeWarning, 1, "coroutine '%U' was never awaited", name))
        PyErr_WriteUnraisable(self->pure);
    Py_XDECREF(name);
    PyErr_Restore(type, value, traceback);
}

static void operation_dealloc(Operation *self) {
    PyTypeObject *type = Py_TYPE(self);
    PyObject *module = ((PyHeapTypeObject *)type)->ht_module; /* NULL: at the end the collector took the type first */
    State *state = module == NULL ? NULL : PyModule_GetState(module);
    PyObject_GC_UnTrack(self);
    if (self->state == FRESH && self->warns)
        warn_never_awaited(self);
    operation_clear(self);
    if (state != NULL && state->operation != NULL && state->free_count < FREE_OPERATIONS)
        state->free[state->free_count++] = self;
    else
        PyObject_GC_Del(self);
    Py_DECREF(type);
}

/* For the end of the module. */
void operations_forget(State *state) {
    while (state->free_count > 0)
        PyObject_GC_Del(state->free[--state->free_count]);
}

/* -- what steps end with */

PySendResult operation_wait(Operation *self, Waiter *waiter, PyObject **result) {
    waiter->blocking = 1;
    Py_XSETREF(self->waiter, (Waiter *)Py_NewRef(waiter));
    self->state = WAITING;
    *result = Py_NewRef(waiter);
    return PYGEN_NEXT;
}

/* Let others run; with a waiter they may not do the same meanwhile: it is `woken`, as net/waiter.py has it. */
PySendResult operation_pause(State *state, Operation *self, Waiter *waiter, PyObject **result) {
    if (waiter != NULL) {
        PyObject *module = PyFunction_Check(self->pure) ? PyFunction_GetGlobals(self->pure) : NULL;
        PyObject *woken = module == NULL ? NULL : PyDict_GetItemWithError(module, N(woken));
        if (woken == NULL)
            return operation_leave_to_pure(self, result);
        Py_XSETREF(waiter->wakeup, Py_NewRef(woken));
    }
    Py_XSETREF(self->waiter, (Waiter *)Py_XNewRef(waiter));
    self->state = PAUSED;
    *result = Py_NewRef(Py_None);
    return PYGEN_NEXT;
}

/* Takes the reference; NULL is an error. */
PySendResult operation_return(Operation *self, PyObject *value, PyObject **result) {
    self->state = DONE;
    *result = value;
    return value == NULL ? PYGEN_ERROR : PYGEN_RETURN;
}

PySendResult operation_fail(Operation *self) {
    self->state = DONE;
    return PYGEN_ERROR;
}

static PySendResult from_delegate(Operation *self, PyObject *arg, PyObject **result) {
    PySendResult how = PyIter_Send(self->delegate, arg, result);
    if (how != PYGEN_NEXT) {
        self->state = DONE;
        Py_CLEAR(self->delegate);
    }
    return how;
}

/* Let a coroutine or a generator do the rest; takes the reference, NULL is an error. */
PySendResult operation_delegate(Operation *self, PyObject *awaitable, PyObject **result) {
    if (awaitable == NULL)
        return operation_fail(self);
    self->delegate = awaitable;
    self->state = DELEGATED;
    return from_delegate(self, Py_None, result);
}

PySendResult operation_leave_to_pure(Operation *self, PyObject **result) {
    return operation_delegate(self, call_pure(self->pure, self->args, self->nargs, NULL), result);
}

/* An exception is raised. The system's means that the connection is broken: `_broken()` sets the states that say so,
 * and the Python function meets them. */
PySendResult operation_raised(State *state, Operation *self, PyObject **result) {
    if (!PyErr_ExceptionMatches(PyExc_OSError))
        return operation_fail(self);
    PyObject *type, *exc, *traceback;
    PyErr_Fetch(&type, &exc, &traceback);
    PyErr_NormalizeException(&type, &exc, &traceback);
    int failure = failed(PyObject_CallMethodOneArg(self->args[0], N(_broken), exc));
    Py_XDECREF(type);
    Py_XDECREF(exc);
    Py_XDECREF(traceback);
    return failure ? operation_fail(self) : operation_leave_to_pure(self, result);
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
    State *state = state_of(self);
    *result = NULL;
    if (state == NULL || is_refused(self))
        return PYGEN_ERROR;
    if (state->stop != NULL && Py_REFCNT(state->stop) == 1)
        Py_CLEAR(((PyStopIterationObject *)state->stop)->value); /* the last result need not stay */
    if (self->waiter != NULL && self->delegate == NULL)
        Py_CLEAR(self->waiter->wakeup);
    self->running = 1;
    PySendResult how = self->delegate == NULL ? self->step(state, self, self->state, result)
                                              : from_delegate(self, arg, result);
    self->running = 0;
    return how;
}

/* Raise StopIteration(value); takes the reference. Making one each time costs ten times as much, so it is used again,
 * while nobody else has it and nobody has raised it in Python. */
static void stop_with(State *state, PyObject *value) {
    PyStopIterationObject *stop = (PyStopIterationObject *)state->stop;
    if (stop == NULL || Py_REFCNT(stop) != 1 || stop->traceback != NULL || stop->context != NULL) {
        stop = (PyStopIterationObject *)PyObject_CallNoArgs(PyExc_StopIteration);
        Py_XSETREF(state->stop, (PyObject *)stop);
        if (stop == NULL) {
            Py_DECREF(value);
            return;
        }
    }
    Py_XSETREF(stop->value, value);
    PyErr_Restore(Py_NewRef(PyExc_StopIteration), Py_NewRef(stop), NULL);
}

static PyObject *operation_iternext(Operation *self) {
    PyObject *result;
    if (operation_am_send(self, Py_None, &result) != PYGEN_RETURN)
        return result;
    if (result == Py_None)
        Py_DECREF(result);
    else
        stop_with(state_of(self), result);
    return NULL;
}

static PyObject *operation_send(Operation *self, PyObject *arg) {
    PyObject *result;
    if (operation_am_send(self, arg, &result) != PYGEN_RETURN)
        return result;
    if (result == Py_None)
        PyErr_SetNone(PyExc_StopIteration);
    PyObject *stop = result == Py_None ? NULL : PyObject_CallOneArg(PyExc_StopIteration, result); /* with `args`, too */
    if (stop != NULL)
        PyErr_SetObject(PyExc_StopIteration, stop);
    Py_XDECREF(stop);
    Py_DECREF(result);
    return NULL;
}

/* throw(exception), or as before Python 3.12 throw(type[, value[, traceback]]). */
static PyObject *operation_throw(Operation *self, PyObject *const *args, Py_ssize_t nargs) {
    State *state = state_of(self);
    if (nargs < 1 || nargs > 3)
        return PyErr_Format(PyExc_TypeError, "throw() takes an exception; got %zd arguments", nargs);
    if (state == NULL || is_refused(self))
        return NULL;
    if (self->delegate != NULL) {
        PyObject *throw = PyObject_GetAttr(self->delegate, N(throw));
        self->running = 1;
        PyObject *result = throw == NULL ? NULL : PyObject_Vectorcall(throw, args, (size_t)nargs, NULL);
        self->running = 0;
        Py_XDECREF(throw);
        if (result == NULL) {
            self->state = DONE;
            Py_CLEAR(self->delegate);
        }
        return result;
    }
    operation_leave(self);
    if (PyExceptionInstance_Check(args[0]))
        PyErr_SetObject((PyObject *)Py_TYPE(args[0]), args[0]);
    else
        PyErr_SetObject(args[0], nargs > 1 ? args[1] : NULL);
    return NULL;
}

static PyObject *operation_close(Operation *self, PyObject *Py_UNUSED(ignored)) {
    State *state = state_of(self);
    if (state == NULL || (self->state != DONE && is_refused(self)))
        return NULL;
    PyObject *delegate = self->delegate;
    self->delegate = NULL;
    operation_leave(self);
    if (delegate == NULL)
        Py_RETURN_NONE;
    PyObject *result = PyObject_CallMethodNoArgs(delegate, N(close));
    Py_DECREF(delegate);
    return result;
}

static PyObject *operation_await(Operation *self) {
    if (self->state != WAITING && self->state != PAUSED && self->state != DELEGATED)
        return Py_NewRef(self);
    PyErr_SetString(PyExc_RuntimeError, "coroutine is being awaited already");
    return NULL;
}

static PyObject *operation_repr(Operation *self) {
    PyObject *name = operation_get_name(self, "__qualname__");
    PyObject *text = name == NULL ? NULL : PyUnicode_FromFormat("<coroutine object %U at %p>", name, self);
    Py_XDECREF(name);
    return text;
}

static PyGetSetDef operation_getset[] = {
    {"__name__", (getter)operation_get_name, NULL, NULL, "__name__"},
    {"__qualname__", (getter)operation_get_name, NULL, NULL, "__qualname__"},
    {0},
};

static PyMethodDef operation_methods[] = {
    {"send", (PyCFunction)operation_send, METH_O, NULL},
    {"throw", (PyCFunction)(void (*)(void))operation_throw, METH_FASTCALL, NULL},
    {"close", (PyCFunction)operation_close, METH_NOARGS, NULL},
    {0},
};

static PyType_Slot operation_slots[] = {
    {Py_tp_traverse, operation_traverse}, {Py_tp_clear, operation_clear}, {Py_tp_dealloc, operation_dealloc},
    {Py_tp_repr, operation_repr},         {Py_am_await, operation_await}, {Py_am_send, operation_am_send},
    {Py_tp_iternext, operation_iternext}, {Py_tp_methods, operation_methods},
    {Py_tp_getset, operation_getset},     {0, NULL},
};

PyType_Spec operation_spec = {
    .name = "asyncserver.speedups.Operation",
    .basicsize = sizeof(Operation),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = operation_slots,
};
