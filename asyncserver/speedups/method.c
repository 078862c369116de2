/* Method: a Python function with its usual case in C.
 *
 * Theory of operation. It stands in a class in the function's place. `accelerate()` gives it the function's name,
 * docstring and so on, as functools.lru_cache() does with its objects (Modules/_functoolsmodule.c), and what makes
 * `inspect` take it for a function: "duck typing", inspect.py, _signature_is_functionlike.
 * Py_TPFLAGS_METHOD_DESCRIPTOR lets `stream.receive()` call it without a bound method in between (PEP 590; ceval's
 * LOAD_ATTR_METHOD takes any type that has the flag).
 */
#include "speedups.h"

#define METHOD_OBJECTS(X) X(module, ) X(pure, ) X(attributes, )

typedef struct {
    const char *name;
    Fast *call;
    int least, most, of_connection;
} Function;

#define FUNCTION(call, name, least, most, of_connection) {name, call, least, most, of_connection},
static const Function functions[] = {FUNCTIONS(FUNCTION)};

typedef struct {
    PyObject_HEAD
    METHOD_OBJECTS(FIELD)
    vectorcallfunc vectorcall;
    const Function *function;
    State *state; /* the module's */
} Method;

static PyObject *method_vectorcall(PyObject *callable, PyObject *const *args, size_t nargsf, PyObject *names) {
    Method *self = (Method *)callable;
    const Function *function = self->function;
    Py_ssize_t nargs = PyVectorcall_NARGS(nargsf);
    if (names != NULL || nargs < function->least || nargs > function->most ||
        (function->of_connection && !is_connection(args[0])))
        return PyObject_Vectorcall(self->pure, args, (size_t)nargs, names);
    return function->call(self->state, self->pure, args, nargs);
}

/* Method(function) */
static PyObject *method_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(names)) {
    PyObject *pure;
    if (!PyArg_ParseTuple(args, "O!", &PyFunction_Type, &pure))
        return NULL;
    size_t i = 0;
    while (PyUnicode_CompareWithASCIIString(((PyFunctionObject *)pure)->func_qualname, functions[i].name))
        if (++i == Py_ARRAY_LENGTH(functions))
            return PyErr_Format(PyExc_LookupError, "nothing is compiled for %R", pure);
    Method *self = (Method *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->module = Py_NewRef(PyType_GetModule(type));
    self->pure = Py_NewRef(pure);
    self->vectorcall = method_vectorcall;
    self->function = &functions[i];
    self->state = PyModule_GetState(self->module);
    return (PyObject *)self;
}

static PyObject *method_get(PyObject *self, PyObject *instance, PyObject *Py_UNUSED(type)) {
    return instance == NULL || instance == Py_None ? Py_NewRef(self) : PyMethod_New(self, instance);
}

LIFE(Method, method, METHOD_OBJECTS, )

static PyMemberDef members[] = {
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Method, vectorcall), READONLY, NULL},
    {"__dictoffset__", T_PYSSIZET, offsetof(Method, attributes), READONLY, NULL},
    {0},
};

/* No tp_clear: a function that is called must be there. The class that holds both breaks the cycle. */
static PyType_Slot slots[] = {
    {Py_tp_new, method_new}, {Py_tp_traverse, method_traverse}, {Py_tp_dealloc, method_dealloc},
    {Py_tp_members, members}, {Py_tp_call, PyVectorcall_Call}, {Py_tp_descr_get, method_get}, {0, NULL},
};
PyType_Spec method_spec = {
    "asyncserver.speedups.Method", sizeof(Method), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL | Py_TPFLAGS_METHOD_DESCRIPTOR |
        Py_TPFLAGS_IMMUTABLETYPE, /* LOAD_ATTR insists */
    slots,
};
