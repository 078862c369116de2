/* Ring: a base for readers of datagrams that receives and answers many of them with one system call.
 *
 * `_receive_next()` gives one datagram after the other, as `Endpoint._receive()` does. When the ring is empty it takes
 * what is left of the batch from the kernel; if the kernel has fewer, the batch ends with them, since to be told so
 * would cost another call. Where fewer may be wanted, in a drain and at the end, it takes one at a time.
 *
 * Control data say where a datagram was sent to, and are mostly those of the one before. What Python makes of them is
 * kept until they differ.
 */
#include "datagrams.h"

#define MOST 32     /* slots: as many as a batch has datagrams */
#define CONTROL 128 /* bytes: CONTROL_SIZE in kernel/packet_info.py */

typedef union {
    char bytes[CONTROL];
    struct cmsghdr first; /* aligned for it */
} Control;

struct slots {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    Name names[MOST];
    Control controls[MOST];
    char memory[]; /* `size` bytes for each, touched as needed */
};

#define slots_of(self) ((struct slots *)PyBytes_AS_STRING((self)->memory)) /* a bytes object, for its owner's life */

/* -- receiving */

/* The control data for an answer, a new reference; NULL with an exception, NotForUs if no handler gets this one. */
static PyObject *judge(Ring *self, struct msghdr *header) {
    Py_ssize_t length = (Py_ssize_t)header->msg_controllen;
    if (!self->judge)
        return Py_NewRef(Py_None);
    if (!self->control || length != PyBytes_GET_SIZE(self->judged)
        || memcmp(header->msg_control, PyBytes_AS_STRING(self->judged), (size_t)length)) {
        PyObject *raw = PyBytes_FromStringAndSize(header->msg_control, length), *control, *packed;
        PyObject *pair = raw ? PyObject_CallOneArg(self->judge, raw) : NULL;
        if (!pair || !PyArg_ParseTuple(pair, "OS", &control, &packed)) {
            Py_XDECREF(raw);
            Py_XDECREF(pair);
            return NULL;
        }
        Py_XSETREF(self->judged, raw);
        Py_XSETREF(self->control, Py_NewRef(control));
        Py_XSETREF(self->packed, Py_NewRef(packed));
        Py_DECREF(pair);
    }
    if (self->control != self->not_for_us)
        return Py_NewRef(self->control);
    PyErr_SetNone(self->not_for_us);
    return NULL;
}

/* The socket's descriptor, or -1: when it is closed somebody else may have got the number. */
static int descriptor(Ring *self) {
    int fd = self->sock ? PyObject_AsFileDescriptor(self->sock) : -1;
    if (fd < 0)
        PyErr_Clear();
    return fd;
}

/* Take datagrams from the kernel, at least one; -1 with an OSError set. */
static int fill(Ring *self) {
    struct slots *slots = slots_of(self);
    int wanted = 1;
    if (self->remaining == Py_None && self->left > 0) /* `left` is without the next one */
        wanted = self->left < MOST ? self->left + 1 : MOST;
    for (int i = 0; i < wanted; i++) {
        slots->vectors[i] = (struct iovec){slots->memory + (size_t)i * self->size, self->size};
        slots->messages[i].msg_hdr = (struct msghdr){
            .msg_name = &slots->names[i], .msg_namelen = sizeof(Name), .msg_iov = &slots->vectors[i], .msg_iovlen = 1,
            .msg_control = &slots->controls[i], .msg_controllen = self->judge ? CONTROL : 0};
    }
    /* With MSG_TRUNC the length is the datagram's own, recv(2). */
    int got = recvmmsg(descriptor(self), slots->messages, (unsigned)wanted, MSG_TRUNC | MSG_DONTWAIT, NULL);
    if (got < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    if (got < wanted)
        self->left = got - 1;
    self->next = 0;
    self->held = got;
    return 0;
}

PyObject *ring_receive(Ring *self, PyObject *Py_UNUSED(ignored)) {
    PyTypeObject *type = (PyTypeObject *)self->datagram_type;
    if (!type)
        return PyErr_Format(PyExc_RuntimeError, "the ring is not open");
    if (!self->held && fill(self))
        return NULL;
    struct slots *slots = slots_of(self);
    self->held--;
    int i = self->next++;
    struct msghdr *header = &slots->messages[i].msg_hdr;
    Py_ssize_t length = slots->messages[i].msg_len;
    PyObject *control = judge(self, header);
    Datagram *datagram = control ? (Datagram *)type->tp_alloc(type, 0) : NULL;
    if (!datagram) {
        Py_XDECREF(control);
        return NULL;
    }
    datagram->control = control;
    datagram->endpoint = Py_NewRef(self);
    datagram->unsent = Py_NewRef(Py_None);
    datagram->name = slots->names[i];
    datagram->name_length = header->msg_namelen;
    datagram->truncated = length > self->size;
    length = datagram->truncated ? self->size : length;
    datagram->data = PyBytes_FromStringAndSize(slots->vectors[i].iov_base, length);
    if (!datagram->data)
        Py_CLEAR(datagram);
    return (PyObject *)datagram;
}

/* -- sending */

/* What an answer is sent with; false if Python has to do it. */
static int message(Ring *self, PyObject *pair, struct msghdr *header, struct iovec *vector) {
    if (!PyTuple_CheckExact(pair) || PyTuple_GET_SIZE(pair) != 2)
        return 0;
    Datagram *datagram = (Datagram *)PyTuple_GET_ITEM(pair, 0);
    PyObject *answer = PyTuple_GET_ITEM(pair, 1);
    if (!Py_IS_TYPE(datagram, (PyTypeObject *)self->datagram_type) || !PyBytes_CheckExact(answer))
        return 0;
    *vector = (struct iovec){PyBytes_AS_STRING(answer), (size_t)PyBytes_GET_SIZE(answer)};
    *header = (struct msghdr){
        .msg_name = &datagram->name, .msg_namelen = datagram->name_length, .msg_iov = vector, .msg_iovlen = 1};
    if (datagram->control != Py_None) {
        if (!self->packed || datagram->control != self->control)
            return 0;
        header->msg_control = PyBytes_AS_STRING(self->packed);
        header->msg_controllen = (size_t)PyBytes_GET_SIZE(self->packed);
    }
    return datagram->name_length > 0;
}

/* _send_batch(answers): how many were sent, in order, up to one that Python has to send. */
static PyObject *send_batch(Ring *self, PyObject *answers) {
    struct mmsghdr messages[MOST];
    struct iovec vectors[MOST];
    int n = 0, sent = 0;
    /* A kind of socket that is the program's own, or stands in for it, gets each call. */
    if (self->datagram_type && self->sock && Py_IS_TYPE(self->sock, (PyTypeObject *)self->sock_type)
        && PyList_CheckExact(answers))
        while (n < MOST && n < PyList_GET_SIZE(answers)
               && message(self, PyList_GET_ITEM(answers, n), &messages[n].msg_hdr, &vectors[n]))
            n++;
    if (n)
        sent = sendmmsg(descriptor(self), messages, (unsigned)n, MSG_DONTWAIT);
    if (sent < 0)
        sent = 0; /* Python meets the error again, and knows what to do */
    self->sent += sent;
    return PyLong_FromLong(sent);
}

/* -- the object */

/* _open(size, datagram, not_for_us, judge): have slots of this size, for datagrams of this class; or an OSError.
 *
 * `judge(raw)` makes of control data those for an answer, as Python and as the kernel wants them. In the place of the
 * former it returns `not_for_us`, an exception, where that is to be raised. It is None if there are no control data. */
static PyObject *ring_open(Ring *self, PyObject *args) {
    int size;
    PyObject *type, *not_for_us, *judge, *module = PyType_GetModuleByDef(Py_TYPE(self), &module_definition);
    if (!module || !PyArg_ParseTuple(args, "iO!OO", &size, &PyType_Type, &type, &not_for_us, &judge))
        return NULL;
    PyTypeObject *base = ((State *)PyModule_GetState(module))->datagram;
    if (size <= 0 || size > 65535 || self->memory || !self->sock || !PyType_IsSubtype((PyTypeObject *)type, base))
        return PyErr_Format(PyExc_ValueError, "_open(size, datagram, not_for_us, judge), once");
    struct mmsghdr none = {0};
    if (recvmmsg(-1, &none, 1, MSG_DONTWAIT, NULL) < 0 && errno != EBADF) /* not here, or not allowed */
        return PyErr_SetFromErrno(PyExc_OSError);
    self->memory = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizeof(struct slots) + MOST * size);
    if (!self->memory)
        return NULL;
    self->size = size;
    self->sock_type = Py_NewRef(Py_TYPE(self->sock));
    self->datagram_type = Py_NewRef(type);
    self->not_for_us = Py_NewRef(not_for_us);
    self->judge = judge == Py_None ? NULL : Py_NewRef(judge);
    Py_RETURN_NONE;
}

LIFE(Ring, ring, RING_OBJECTS)

static PyMethodDef methods[] = {
    {"_open", (PyCFunction)ring_open, METH_VARARGS, NULL},
    {"_receive_next", (PyCFunction)ring_receive, METH_NOARGS, NULL},
    {"_send_batch", (PyCFunction)send_batch, METH_O, NULL},
    {0},
};
#define MEMBER(field, name) {name, T_OBJECT_EX, offsetof(Ring, field), 0, NULL},
static PyMemberDef ring_members[] = {
    READER_OBJECTS(MEMBER)
    {"received", T_LONGLONG, offsetof(Ring, received), 0, NULL},
    {"sent", T_LONGLONG, offsetof(Ring, sent), 0, NULL},
    {"_left", T_INT, offsetof(Ring, left), 0, NULL},
    {"_held", T_INT, offsetof(Ring, held), READONLY, NULL},
    {0},
};
static PyType_Slot slots[] = {SLOTS(ring, "Receives and sends for its reader."), {Py_tp_methods, methods}, {0, NULL}};
PyType_Spec ring_spec = {"asyncserver.datagrams.ring_runner.Ring", sizeof(Ring), 0, FLAGS, slots};
